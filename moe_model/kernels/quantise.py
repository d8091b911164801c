"""Weights in 8 bits: one scale per output, symmetric, no zero point. Shapes: O outputs, I inputs."""

import torch
from torch import Tensor

_LARGEST = 127


def quantise_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Returns int8 values_OI and float32 scale_O: the largest weight of an output becomes 127 or -127."""
    weight_OI = weight_OI.float()
    scale_O = (weight_OI.abs().amax(dim=1) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    values_OI = (weight_OI / scale_O.unsqueeze(1)).round().clamp(-_LARGEST, _LARGEST)
    return values_OI.to(torch.int8), scale_O


def dequantise_int8(values_OI: Tensor, scale_O: Tensor) -> Tensor:
    """The float32 weights that the values stand for."""
    return values_OI.float() * scale_O.unsqueeze(1)
