"""The one place where a matrix product of the model is made.

On a CPU, bfloat16 weights are packed once into the layout of oneDNN's kernels, which is faster for few rows.
float32 keeps the plain product: it is there for exactness, and the packed one adds up in an order whose error
is three to ten times larger (benchmarks/LOG.md).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "gelu"]


class Linear:
    """activation(x Wᵀ + b); "gelu" is the exact (erf) one."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None = None, activation: Activation = "none"
    ) -> None:
        self._bias_O = bias_O
        self._activation = activation
        self._is_packed = _can_pack(weight_OI)
        self._weight_OI = (
            torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), None)
            if self._is_packed
            else weight_OI
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [..., O] for x [..., I]."""
        if self._is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._weight_OI, self._bias_O, self._activation, [], "none"
            )
            return y
        y = F.linear(x, self._weight_OI, self._bias_O)
        return F.gelu(y) if self._activation == "gelu" else y


def _can_pack(weight_OI: Tensor) -> bool:
    return (
        weight_OI.device.type == "cpu"
        and weight_OI.dtype == torch.bfloat16
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
