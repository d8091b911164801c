"""Weights in the layout of the kernels: panels of 16 outputs, see src/matrix.h and src/blocks.h.

Shapes: O outputs, I inputs, N panels, B blocks of an output, k inputs of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.names import WeightForm

PANEL = 16
# Values of blocks are unsigned in memory.
_OFFSETS: dict[WeightForm, int] = {"q8": 128, "q4": 8, "mxfp4": 0}


def pack(weight_OI: Tensor, gated_OI: Tensor | None = None) -> Tensor:
    """Of float32, bfloat16 or int8, as they are: [N, I, 16], or [N, I / 2, 16, 2] for bfloat16; filled up
    with zeros. With a second matrix, their panels are in turns. What comes of it is the only copy."""
    assert weight_OI.is_cpu
    assert gated_OI is None or (gated_OI.shape, gated_OI.dtype) == (weight_OI.shape, weight_OI.dtype)
    parts = [_in_rows(part) for part in (weight_OI, gated_OI) if part is not None]
    if len({part.stride(0) for part in parts}) > 1:
        parts = [part.contiguous() for part in parts]
    num_out, num_in = weight_OI.shape
    num_panels = -(-num_out // PANEL) * len(parts)
    is_paired = weight_OI.dtype == torch.bfloat16
    shape = (num_panels, -(-num_in // 2), PANEL, 2) if is_paired else (num_panels, num_in, PANEL)
    packed = torch.empty(shape, dtype=weight_OI.dtype)
    second = parts[1].data_ptr() if len(parts) > 1 else 0
    sizes = num_out, num_in, weight_OI.element_size(), parts[0].stride(0)
    _kernels.pack(parts[0].data_ptr(), second, *sizes, packed.data_ptr())
    return packed


def pack_blocks(values_OBk: Tensor, scale_OB: Tensor, form: WeightForm) -> Tensor:
    """Of int8 values and float16 scales, or of mxfp4's codes and scales, both uint8: uint8 [N, B, bytes of a
    block of 16 outputs]."""
    pad, num_blocks = -len(values_OBk) % PANEL, scale_OB.shape[1]
    offset = _OFFSETS[form]
    unsigned_OBk = (values_OBk.to(torch.int16) + offset).to(torch.uint8)
    if form != "q8":
        low_OBj, high_OBj = unsigned_OBk.chunk(2, dim=2)
        unsigned_OBk, offset = low_OBj | high_OBj << 4, offset | offset << 4
    # Outputs that are filled up are zeros, which are offsets, or code 0. Four bytes of each output together.
    filled_OBk = F.pad(unsigned_OBk, (0, 0, 0, 0, 0, pad), value=offset)
    fours_NBgp4 = filled_OBk.view(-1, PANEL, num_blocks, filled_OBk.shape[2] // 4, 4).permute(0, 2, 3, 1, 4)
    scale_NBp = F.pad(scale_OB, (0, 0, 0, pad)).view(-1, PANEL, num_blocks).transpose(1, 2)
    return torch.cat([scale_NBp.contiguous().view(torch.uint8), fours_NBgp4.flatten(2)], dim=2)


def pack_scales(*scales_OB: Tensor) -> Tensor:
    """Of fp8, of one matrix or of two whose panels are in turns: float32 [N, B, 16], filled up with zeros."""
    filled = [F.pad(part_OB, (0, 0, 0, -len(part_OB) % PANEL)) for part_OB in scales_OB]
    panels = [part_OB.view(-1, PANEL, part_OB.shape[1]).transpose(1, 2) for part_OB in filled]
    return torch.stack(panels, dim=1).flatten(0, 1)


def _in_rows(weight_OI: Tensor) -> Tensor:
    """Each row in one piece."""
    return weight_OI if weight_OI.stride(1) == 1 else weight_OI.contiguous()


def in_turns(gate_O: Tensor, up_O: Tensor) -> Tensor:
    """Two vectors as one: 16 values of the first, 16 of the second, and so on, each filled up with zeros."""
    parts = [F.pad(part_O, (0, -len(part_O) % PANEL)).view(-1, PANEL) for part_O in (gate_O, up_O)]
    return torch.stack(parts, dim=1).flatten()
