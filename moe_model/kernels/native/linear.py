"""Norms and products over the C kernels: they keep the weights that C points into.

Rows are float32 between the parts, whatever the weights are. Shapes: R rows, I inputs, O outputs, D d_model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.kernels.native.pack import PANEL, in_turns, pack, pack_blocks, pack_scales
from moe_model.kernels.native.runtime import Runtime, address_of, row_bytes, rows_of
from moe_model.kernels.quantise import quantise_blocks, quantise_int8
from moe_model.layers.specs import Activation, NormKind, NormSpec, SwigluLimit
from moe_model.layers.stored_matrix import StoredMatrix
from moe_model.names import WeightForm

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
# A megabyte of float32.
_VALUES_AT_ONCE = 1 << 18
_FORMS: dict[WeightForm, int] = {"q8": 3, "q4": 4, "mxfp4": 5, "fp8": 6}
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
    """A matrix in the layout of the kernels, with its bias, rounded to `form`, or stored in it.

    With a second one of its shape, `gate_OI`, a product is activation(gate(x)) · (x Wᵀ + b), or what `limit`
    says.
    """

    def __init__(
        self,
        weight_OI: Tensor | StoredMatrix,
        bias_O: Tensor | None = None,
        gate_OI: Tensor | StoredMatrix | None = None,
        gate_bias_O: Tensor | None = None,
        *,
        form: WeightForm = "model",
        limit: SwigluLimit | None = None,
        exact_rows: bool = False,
    ) -> None:
        assert limit is None or gate_OI is not None
        self.num_out, self.num_in = weight_OI.shape
        self.is_gated = gate_OI is not None
        packed, scale_O, scale_NBp = _packed(weight_OI, gate_OI, form)
        assert bias_O is None or bias_O.shape == weight_OI.shape[:1]
        bias_O = None if bias_O is None else bias_O.float().contiguous()
        if gate_OI is not None:
            assert (gate_bias_O is None) == (bias_O is None)
            if gate_bias_O is not None and bias_O is not None:
                bias_O = in_turns(gate_bias_O.float(), bias_O)
        # C points into these.
        self._kept = packed, scale_O, scale_NBp, bias_O
        self.num_bytes = sum(part.nbytes for part in self._kept if part is not None)
        self.handle = _kernels.matrix(
            _FORMS.get(form) or _DTYPES[packed.dtype],
            address_of(packed),
            address_of(scale_O),
            address_of(scale_NBp),
            address_of(bias_O),
            self.num_in,
            self.num_out,
            self.is_gated,
            0.0 if limit is None else limit.limit,
            0.0 if limit is None else limit.alpha,
            exact_rows,
        )


def _packed(
    weight_OI: Tensor | StoredMatrix, gate_OI: Tensor | StoredMatrix | None, form: WeightForm
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Panels, the scales of int8 ones, and those of fp8 ones."""
    assert gate_OI is None or gate_OI.shape == weight_OI.shape
    matrices = [weight_OI] if gate_OI is None else [gate_OI, weight_OI]
    numbers = [each for each in matrices if isinstance(each, Tensor)]
    stored = [each for each in matrices if isinstance(each, StoredMatrix)]
    assert all(each.form == form for each in stored)
    if form == "fp8":
        return (
            pack(*(each.bytes_Ob for each in stored)),
            None,
            pack_scales(*(each.scale_OB for each in stored)),
        )
    if form == "model":
        return pack(*numbers), None, None
    if form == "int8":
        values, scales = zip(*map(quantise_int8, numbers), strict=True)
        return pack(*values), scales[0] if gate_OI is None else in_turns(*scales), None
    return _in_blocks(matrices, form), None, None


def _in_blocks(matrices: Sequence[Tensor | StoredMatrix], form: WeightForm) -> Tensor:
    """Their panels in turns. Some outputs at a time: what rounding needs beside stays small."""
    num_out, num_in = matrices[0].shape
    at_once = PANEL * max(1, _VALUES_AT_ONCE // (PANEL * num_in))

    def packed(some: slice) -> Tensor:
        parts = (_blocks(matrix_OI, some, form) for matrix_OI in matrices)
        return torch.stack([pack_blocks(*values_and_scales, form) for values_and_scales in parts], dim=1)

    starts = range(0, num_out, at_once)
    return torch.cat([packed(slice(first, first + at_once)) for first in starts]).flatten(0, 1)


def _blocks(matrix_OI: Tensor | StoredMatrix, some: slice, form: WeightForm) -> tuple[Tensor, Tensor]:
    """Values and scales of some outputs, as `pack_blocks` takes them."""
    if isinstance(matrix_OI, StoredMatrix):
        part = matrix_OI.rows(some)
        return part.codes(), part.scale_OB
    return quantise_blocks(matrix_OI[some], form)


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
            self._runtime.scratch.address(num_rows * row_bytes(num_in)),
            self._runtime.num_threads,
        )
        return y
