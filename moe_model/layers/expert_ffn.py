"""The feed-forward networks that experts are."""

from dataclasses import dataclass

from torch import Tensor

from moe_model.kernels.base import Linear


@dataclass(frozen=True, slots=True)
class GeluExpert:
    """down(up(x)): `up` begins with the expert's own norm and ends in the exact GELU.

    The residual is the layer's.
    """

    up: Linear
    down: Linear

    def __call__(self, x_RD: Tensor) -> Tensor:
        return self.down(self.up(x_RD))
