"""What matrices in a checkpoint's own bytes stand for, by their formats' definitions, in float64."""

import torch
from torch import Tensor

from moe_model.layers.stored_matrix import BLOCK_INPUTS, StoredMatrix

# Twice the values of e2m1.
_TWICE = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])


def integers(matrix: StoredMatrix) -> tuple[Tensor, Tensor]:
    """Of mxfp4: integers [O, B, 32], and the float32 scales [O, B] that they are to be multiplied by."""
    codes_OBk = torch.stack([matrix.bytes_Ob & 15, matrix.bytes_Ob >> 4], dim=2).flatten(1).long()
    scale_OB = 2.0 ** (matrix.scale_OB.double() - 128)
    return _TWICE[codes_OBk].view(*scale_OB.shape, 32), scale_OB.float()


def numbers(matrix: StoredMatrix) -> Tensor:
    """[O, I]."""
    if matrix.form == "mxfp4":
        values_OBk, scale_OB = integers(matrix)
        return (values_OBk.double() * scale_OB.double().unsqueeze(2)).flatten(1)
    values_OI = matrix.bytes_Ob.view(torch.float8_e4m3fn).double()
    scale_OI = matrix.scale_OB.double().repeat_interleave(BLOCK_INPUTS["fp8"], dim=1)
    return values_OI * scale_OI[:, : values_OI.shape[1]]
