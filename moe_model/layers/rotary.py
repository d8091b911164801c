"""Rotary positions with torch. Shapes: T tokens, H heads, d head size, P pairs of values that turn together.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
"""

import math

import torch
from torch import Tensor

from moe_model.layers.specs import RotaryScaling, RotarySpec


def rotary_rates(spec: RotarySpec, device: torch.device | str = "cpu") -> Tensor:
    """rates_P, in radians per position; float32, as the authors of the models compute them.

    The one place that knows frequencies: a scaled kind of rotary positions is added here and in its spec.
    """
    exponents_P = torch.arange(0, spec.dim, 2, device=device).float() / spec.dim
    rates_P = 1.0 / (spec.theta**exponents_P)
    if spec.scaling is None:
        return rates_P
    share_P = _share_of_slow(spec.scaling, rates_P, spec)
    return rates_P / spec.scaling.factor * share_P + rates_P * (1 - share_P)


def attention_factor(spec: RotarySpec) -> float:
    """What sines and cosines are multiplied by."""
    return 1.0 if spec.scaling is None else spec.scaling.attention_factor


def _share_of_slow(scaling: RotaryScaling, rates_P: Tensor, spec: RotarySpec) -> Tensor:
    """How much of each frequency is divided by the factor: all is 1."""
    if scaling.kind == "linear":
        return torch.ones_like(rates_P)
    if scaling.kind == "llama3":
        turns_P = scaling.original * rates_P / (2 * math.pi)
        return ((scaling.high - turns_P) / max(scaling.high - scaling.low, 1e-9)).clamp(0, 1)
    assert scaling.kind == "yarn"
    first, last = (_pair_of(turns, scaling, spec) for turns in (scaling.high, scaling.low))
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.dim - 1)
    if first == last:
        last += 0.001
    pairs_P = torch.arange(len(rates_P), device=rates_P.device).float()
    return ((pairs_P - first) / (last - first)).clamp(0, 1)


def _pair_of(turns: float, scaling: RotaryScaling, spec: RotarySpec) -> float:
    """Where between the pairs the one would be that turns so many times in the original positions."""
    return spec.dim * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))


class TorchRotary:
    """As `kernels.base.Rotary`. Angles are float32."""

    def __init__(self, spec: RotarySpec) -> None:
        self._spec = spec
        self._rates_P = rotary_rates(spec)
        self._factor = attention_factor(spec)

    def __call__(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        self._rates_P = self._rates_P.to(x_THd.device)
        angles_T1P = (positions_T.float().unsqueeze(1) * self._rates_P).unsqueeze(1)
        cos_T1P, sin_T1P = angles_T1P.cos(), angles_T1P.sin()
        if self._factor != 1.0:
            cos_T1P, sin_T1P = cos_T1P * self._factor, sin_T1P * self._factor
        dtype = torch.float32 if self._spec.is_rounded_once else x_THd.dtype
        cos_T1P, sin_T1P = cos_T1P.to(dtype), sin_T1P.to(dtype)
        turning_THr, rest = x_THd[..., : self._spec.dim].to(dtype), x_THd[..., self._spec.dim :]
        if self._spec.pairing == "interleaved":
            first_THP, second_THP = turning_THr[..., 0::2], turning_THr[..., 1::2]
        else:
            first_THP, second_THP = turning_THr.chunk(2, dim=-1)
        turned = (
            first_THP * cos_T1P - second_THP * sin_T1P,
            second_THP * cos_T1P + first_THP * sin_T1P,
        )
        if self._spec.pairing == "interleaved":
            turned_THr = torch.stack(turned, dim=-1).flatten(-2)
        else:
            turned_THr = torch.cat(turned, dim=-1)
        return torch.cat([turned_THr.to(x_THd.dtype), rest], dim=-1)
