"""Norms and products over the C kernels: they keep the weights that C points into.

Rows are float32 between the parts, whatever the weights are. Shapes: R rows, I inputs, O outputs, D d_model.
"""

import torch
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.kernels.native.pack import in_turns, pack
from moe_model.kernels.native.runtime import Runtime, address_of, rows_of
from moe_model.kernels.quantise import quantise_int8
from moe_model.layers.specs import Activation, NormKind, NormSpec, SwigluLimit

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_NORMS: dict[NormKind, int] = {"layer_norm": 1, "rms_norm": 2}
ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "silu": 2}


class NativeNorm:
    """A norm of rows. Without a bias, LayerNorm shifts by 0."""

    def __init__(self, runtime: Runtime, spec: NormSpec, weight_D: Tensor, bias_D: Tensor | None) -> None:
        if bias_D is None and spec.kind == "layer_norm":
            bias_D = torch.zeros_like(weight_D)
        assert bias_D is None or (spec.kind == "layer_norm" and bias_D.shape == weight_D.shape)
        self._runtime = runtime
        self._weight_D = weight_D.float().contiguous()
        self._bias_D = None if bias_D is None else bias_D.float().contiguous()
        self._width = len(weight_D)
        addresses = address_of(self._weight_D), address_of(self._bias_D)
        self.handle = _kernels.norm(_NORMS[spec.kind], *addresses, spec.eps, self._width)

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = rows_of(x, self._width)
        y = torch.empty_like(x)
        _kernels.normalise(self._runtime.kernels, self.handle, x.data_ptr(), num_rows, y.data_ptr())
        return y

    def norm_heads(self, x_THd: Tensor) -> None:
        num_rows, num_heads, width = x_THd.shape
        assert x_THd.dtype == torch.float32
        assert width == self._width
        assert x_THd.stride()[1:] == (width, 1)
        _kernels.normalise_heads(
            self._runtime.kernels,
            self.handle,
            x_THd.data_ptr(),
            num_rows,
            num_heads,
            x_THd.stride(0),
            self._runtime.num_threads,
        )


class NativeMatrix:
    """A matrix in the layout of the kernels, with its bias; `int8` rounds it to 8 bits.

    With a second one of its shape, `gate_OI`, a product is activation(gate(x)) · (x Wᵀ + b), or what `limit`
    says.
    """

    def __init__(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        gate_OI: Tensor | None = None,
        gate_bias_O: Tensor | None = None,
        *,
        int8: bool = False,
        limit: SwigluLimit | None = None,
    ) -> None:
        assert limit is None or gate_OI is not None
        self.num_out, self.num_in = weight_OI.shape
        self.is_gated = gate_OI is not None
        values_OI, scale_O = _values(weight_OI, bias_O, int8=int8)
        bias_O = None if bias_O is None else bias_O.float().contiguous()
        if gate_OI is None:
            packed = pack(values_OI)
        else:
            gate_values_OI, gate_scale_O = _values(gate_OI, gate_bias_O, int8=int8)
            packed = pack(gate_values_OI, values_OI)
            scale_O, bias_O = _both(gate_scale_O, scale_O), _both(gate_bias_O, bias_O)
        # C points into these.
        self._kept = packed, scale_O, bias_O
        self.handle = _kernels.matrix(
            _DTYPES[packed.dtype],
            address_of(packed),
            address_of(scale_O),
            address_of(bias_O),
            self.num_in,
            self.num_out,
            self.is_gated,
            0.0 if limit is None else limit.limit,
            0.0 if limit is None else limit.alpha,
        )


def _values(weight_OI: Tensor, bias_O: Tensor | None, *, int8: bool) -> tuple[Tensor, Tensor | None]:
    """Values, and the scales of int8 values."""
    assert bias_O is None or bias_O.shape == weight_OI.shape[:1]
    return quantise_int8(weight_OI) if int8 else (weight_OI, None)


def _both(gate_O: Tensor | None, up_O: Tensor | None) -> Tensor | None:
    assert (gate_O is None) == (up_O is None)
    return None if gate_O is None or up_O is None else in_turns(gate_O.float(), up_O)


class NativeLinear:
    """A product and what surrounds it."""

    def __init__(
        self,
        runtime: Runtime,
        matrix: NativeMatrix,
        activation: Activation = "none",
        norm: NativeNorm | None = None,
    ) -> None:
        self.matrix = matrix
        self.norm = norm
        self._runtime = runtime
        self.norm_handle = None if norm is None else norm.handle
        self.activation_code = ACTIVATIONS[activation]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        num_in, num_out = self.matrix.num_in, self.matrix.num_out
        num_rows = rows_of(x, num_in)
        y = torch.empty(*x.shape[:-1], num_out)
        if residual is not None:
            assert rows_of(residual, num_out) == num_rows
            assert not self.matrix.is_gated
        _kernels.linear(
            self._runtime.kernels,
            self.matrix.handle,
            x.data_ptr(),
            num_rows,
            num_in,
            self.norm_handle,
            self.activation_code,
            address_of(residual),
            y.data_ptr(),
            self._runtime.scratch.address(4 * num_rows * (num_in + 1)),
            self._runtime.num_threads,
        )
        return y
