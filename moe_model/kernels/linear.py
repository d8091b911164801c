"""Matrix products with torch, in the way their weights and rows want it.

On a CPU, bfloat16 weights are packed once into the layout of oneDNN's kernels, which is faster for few rows;
where the processor has none of its instructions, oneDNN refuses to pack and the plain product serves.
float32 keeps the plain product: it is there for exactness, and the packed one has two to three times its
error. For a few rows it is computed as (W xᵀ)ᵀ, which reads the weights at the speed of the memory where
x Wᵀ does not. Both were measured: benchmarks/LOG.md.

Shapes: R rows, I inputs, O outputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.kernels.base import Norm
from moe_model.layers.specs import Activation

FEW_ROWS = 8

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "gelu": F.gelu,
    "silu": F.silu,
}
# As oneDNN calls them.
_PACKED: dict[Activation, str] = {"none": "none", "gelu": "gelu", "silu": "swish"}


class TorchLinear:
    """activation(norm(x) Wᵀ + b) + residual; "gelu" is the exact (erf) one."""

    def __init__(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        activation: Activation = "none",
        norm: Norm | None = None,
    ) -> None:
        self.norm = norm
        self.bias_O = bias_O
        self._activation = activation
        self._is_packed = _can_pack(weight_OI)
        self._prefers_few = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.float32
        self.weight_OI = (
            torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), None)
            if self._is_packed
            else weight_OI
        )

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns [..., O] for x [..., I]."""
        y = self._product(x if self.norm is None else self.norm(x))
        return y if residual is None else residual + y

    def _product(self, x: Tensor) -> Tensor:
        if self._is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.weight_OI, self.bias_O, _PACKED[self._activation], [], "none"
            )
            return y
        if self._prefers_few and x.dim() == 2 and len(x) <= FEW_ROWS:
            y = self._few_rows(x)
        else:
            y = F.linear(x, self.weight_OI, self.bias_O)
        return ACTIVATIONS[self._activation](y)

    def _few_rows(self, x_RI: Tensor) -> Tensor:
        # One row alone would be a matrix-vector product, which is slow again.
        pair_RI = x_RI.repeat(2, 1) if len(x_RI) == 1 else x_RI
        y_RO = (self.weight_OI @ pair_RI.t()).t()[: len(x_RI)]
        return y_RO.contiguous() if self.bias_O is None else torch.add(y_RO, self.bias_O).contiguous()


class TorchHeadLinear:
    """A product for each head, as one batch of them."""

    def __init__(self, weight_HOI: Tensor) -> None:
        self._weight_HIO = weight_HOI.transpose(1, 2)

    def __call__(self, x_THI: Tensor) -> Tensor:
        return torch.bmm(x_THI.transpose(0, 1), self._weight_HIO).transpose(0, 1)


class TorchRowGate:
    """As `kernels.base.RowGate`."""

    def __init__(self, linear: TorchLinear) -> None:
        self._linear = linear

    def __call__(self, y_TD: Tensor, x_TD: Tensor) -> Tensor:
        return y_TD * torch.sigmoid(self._linear(x_TD))


def has_fast_bfloat16() -> bool:
    """Whether this processor's bfloat16 products are fast; they work on any."""
    return torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _can_pack(weight_OI: Tensor) -> bool:
    return weight_OI.device.type == "cpu" and weight_OI.dtype == torch.bfloat16 and has_fast_bfloat16()
