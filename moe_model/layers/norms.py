"""Norms with torch. Shapes: R rows, D d_model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.layers.specs import NormSpec


@dataclass(frozen=True, slots=True)
class TorchNorm:
    """A norm of the last dimension. RMSNorm has no bias."""

    spec: NormSpec
    weight_D: Tensor
    bias_D: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.bias_D is None or self.spec.kind == "layer_norm"

    def __call__(self, x: Tensor) -> Tensor:
        if self.spec.kind == "layer_norm":
            return F.layer_norm(x, self.weight_D.shape, self.weight_D, self.bias_D, self.spec.eps)
        return normalised(self.spec, x, self.weight_D)

    def norm_heads(self, x_THd: Tensor) -> None:
        x_THd.copy_(self(x_THd))


def normalised(spec: NormSpec, x: Tensor, weight: Tensor) -> Tensor:
    """The norm without a bias, in x's dtype; the weight is one for all rows, or of each.

    Sources: Ba et al., "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer
    Normalization", 2019.
    """
    if spec.kind == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], eps=spec.eps) * weight
    wide = x.float()
    quotient = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + spec.eps)
    if spec.is_rounded_once:
        return (quotient * weight.float()).to(x.dtype)
    return quotient.to(x.dtype) * weight
