"""Weights in the layout of the kernels: panels of 16 outputs, see src/matrix.h.

Shapes: O outputs, I inputs, N panels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16


def pack(weight_OI: Tensor) -> Tensor:
    """Of float32, bfloat16 or int8, as they are: [N, I, 16], or [N, I / 2, 16, 2] for bfloat16.

    Where nothing is to be filled up, what comes of it is the only copy.
    """
    is_paired = weight_OI.dtype == torch.bfloat16
    full_OI = _padded(weight_OI, weight_OI.shape[1] % 2 if is_paired else 0, -len(weight_OI) % PANEL)
    num_in = full_OI.shape[1]
    shape = (-1, PANEL, num_in // 2, 2) if is_paired else (-1, PANEL, num_in)
    return full_OI.reshape(shape).transpose(1, 2).contiguous()


def _padded(weight_OI: Tensor, num_in: int, num_out: int) -> Tensor:
    """With so many more inputs and outputs, zeros. To fill up with nothing would be a copy, too."""
    return F.pad(weight_OI, (0, num_in, 0, num_out)) if num_in or num_out else weight_OI


def panels_in_turns(gate: Tensor, up: Tensor) -> Tensor:
    """Two matrices [O, I], or vectors [O], as the rows of one: 16 of the first, 16 of the second, and so on,
    each filled up with zeros to whole panels."""
    parts = [F.pad(part, (0, 0) * (part.dim() - 1) + (0, -len(part) % PANEL)) for part in (gate, up)]
    in_panels = [part.view(-1, PANEL, *part.shape[1:]) for part in parts]
    return torch.stack(in_panels, dim=1).flatten(0, 2)
