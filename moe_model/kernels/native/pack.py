"""Weights in the layout of the kernels: panels of 16 outputs, see src/matrix.h.

Shapes: O outputs, I inputs, N panels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16


def pack(weight_OI: Tensor) -> Tensor:
    """Of float32, bfloat16 or int8, as they are: [N, I, 16], or [N, I / 2, 16, 2] for bfloat16."""
    num_in = weight_OI.shape[1]
    if weight_OI.dtype != torch.bfloat16:
        return _pad_outputs(weight_OI).view(-1, PANEL, num_in).transpose(1, 2).contiguous()
    even_OI = F.pad(weight_OI, (0, num_in % 2))
    return _pad_outputs(even_OI).view(-1, PANEL, even_OI.shape[1] // 2, 2).transpose(1, 2).contiguous()


def _pad_outputs(weight_OI: Tensor) -> Tensor:
    return F.pad(weight_OI, (0, 0, 0, -len(weight_OI) % PANEL))


def panels_in_turns(gate: Tensor, up: Tensor) -> Tensor:
    """Two matrices [O, I], or vectors [O], as the rows of one: 16 of the first, 16 of the second, and so on,
    each filled up with zeros to whole panels."""
    parts = [F.pad(part, (0, 0) * (part.dim() - 1) + (0, -len(part) % PANEL)) for part in (gate, up)]
    in_panels = [part.view(-1, PANEL, *part.shape[1:]) for part in parts]
    return torch.stack(in_panels, dim=1).flatten(0, 2)
