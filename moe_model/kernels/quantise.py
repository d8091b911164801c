"""Weights in 8 and 4 bits, symmetric, no zero point: one scale for each output, or for each block of 32
inputs: the numbers of GGUF's Q8_0 and Q4_0.

Shapes: O outputs, I inputs, B blocks of an output.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.layers.stored_matrix import BLOCK_INPUTS
from moe_model.names import WeightForm

BLOCK = 32
_LARGEST = 127
_LARGEST_Q4 = 8


def rounded(weight_OI: Tensor, form: WeightForm) -> Tensor:
    """The weights that are left of these in that form, one that any can be rounded to, in their own dtype."""
    if form == "model":
        return weight_OI
    if form == "int8":
        return dequantise_int8(*quantise_int8(weight_OI)).to(weight_OI.dtype)
    values_OBk, scale_OB = quantise_blocks(weight_OI, form)
    return dequantise_blocks(values_OBk, scale_OB, weight_OI.shape[1]).to(weight_OI.dtype)


def matrix_bytes(shape: Sequence[int], dtype: torch.dtype, form: WeightForm) -> int:
    """What a matrix [O, I] whose own dtype this is takes in that form."""
    num_out, num_in = shape
    num_blocks = num_out * -(-num_in // BLOCK)
    match form:
        case "model":
            return num_out * num_in * dtype.itemsize
        case "int8":
            return num_out * (num_in + 4)
        case "q8":
            return num_blocks * (BLOCK + 2)
        case "q4":
            return num_blocks * (BLOCK // 2 + 2)
        case "mxfp4":
            return num_blocks * (BLOCK // 2 + 1)
        case "fp8":
            return num_out * (num_in + 4 * -(-num_in // BLOCK_INPUTS["fp8"]))


def quantise_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Returns int8 values_OI and float32 scale_O: the largest weight of an output becomes 127 or -127."""
    weight_OI = weight_OI.float()
    scale_O = (weight_OI.abs().amax(dim=1) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    values_OI = (weight_OI / scale_O.unsqueeze(1)).round().clamp(-_LARGEST, _LARGEST)
    return values_OI.to(torch.int8), scale_O


def dequantise_int8(values_OI: Tensor, scale_O: Tensor) -> Tensor:
    """The float32 weights that the values stand for."""
    return values_OI.float() * scale_O.unsqueeze(1)


def quantise_blocks(weight_OI: Tensor, form: WeightForm) -> tuple[Tensor, Tensor]:
    """Returns int8 values_OBk, k the 32 inputs of a block, the last filled up with zeros, and float16
    scale_OB.

    Of q8, the largest weight of a block becomes 127 or -127; of q4 the largest becomes -8, whatever its sign,
    and values go from -8 to 7. Values are the nearest for the scale as it was rounded to float16. A block
    with a weight that is not finite, or so large that its scale is beyond float16 (8 million; 500,000 of q4),
    has a scale that is not finite.
    """
    blocks_OBk = F.pad(weight_OI.float(), (0, -weight_OI.shape[1] % BLOCK)).view(len(weight_OI), -1, BLOCK)
    sizes_OBk = blocks_OBk.abs()
    if form == "q8":
        least, most = -_LARGEST, _LARGEST
        scale_OB = (sizes_OBk.amax(dim=2) / _LARGEST).half()
    else:
        assert form == "q4"
        least, most = -_LARGEST_Q4, _LARGEST_Q4 - 1
        largest_OB1 = blocks_OBk.gather(2, sizes_OBk.argmax(dim=2, keepdim=True))
        scale_OB = (largest_OB1.squeeze(2) / -_LARGEST_Q4).half()
    # Zeros over a scale of zero are no numbers, which become zeros again.
    values_OBk = (blocks_OBk / scale_OB.float().unsqueeze(2)).nan_to_num(0.0).round().clamp(least, most)
    values_OBk = torch.where(scale_OB.unsqueeze(2) == 0, 0, values_OBk)
    return values_OBk.to(torch.int8), scale_OB


def dequantise_blocks(values_OBk: Tensor, scale_OB: Tensor, num_in: int) -> Tensor:
    """The float32 weights [O, I] that the values stand for."""
    return (values_OBk.float() * scale_OB.float().unsqueeze(2)).flatten(1)[:, :num_in]
