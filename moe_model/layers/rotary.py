"""Rotary positions with torch. Shapes: T tokens, H heads, d head size, P pairs of values that turn together.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
"""

import torch
from torch import Tensor

from moe_model.layers.specs import RotarySpec


def rotary_rates(spec: RotarySpec, device: torch.device | str = "cpu") -> Tensor:
    """rates_P, in radians per position; float32, as the authors of the models compute them.

    The one place that knows frequencies: a scaled kind of rotary positions is added here and in its spec.
    """
    exponents_P = torch.arange(0, spec.dim, 2, device=device).float() / spec.dim
    return 1.0 / (spec.theta**exponents_P)


class TorchRotary:
    """As `kernels.base.Rotary`. Angles are float32, sines and cosines are rounded to the rows' dtype."""

    def __init__(self, spec: RotarySpec) -> None:
        self._spec = spec
        self._rates_P = rotary_rates(spec)

    def __call__(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        self._rates_P = self._rates_P.to(x_THd.device)
        angles_T1P = (positions_T.float().unsqueeze(1) * self._rates_P).unsqueeze(1)
        cos_T1P, sin_T1P = angles_T1P.cos().to(x_THd.dtype), angles_T1P.sin().to(x_THd.dtype)
        turning_THr, rest = x_THd[..., : self._spec.dim], x_THd[..., self._spec.dim :]
        if self._spec.pairing == "interleaved":
            first_THP, second_THP = turning_THr[..., 0::2], turning_THr[..., 1::2]
        else:
            first_THP, second_THP = turning_THr.chunk(2, dim=-1)
        turned = (
            first_THP * cos_T1P - second_THP * sin_T1P,
            second_THP * cos_T1P + first_THP * sin_T1P,
        )
        if self._spec.pairing == "interleaved":
            return torch.cat([torch.stack(turned, dim=-1).flatten(-2), rest], dim=-1)
        return torch.cat([*turned, rest], dim=-1)
