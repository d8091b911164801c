"""The parts of a model over the C kernels: checks what C cannot, and keeps the weights that C points into.

Rows are float32 between the parts, whatever the weights are. Shapes: as in moe_model/kernels/base.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from moe_model.kernels.base import Activation, Segments
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.pack import pack
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_ffn import GeluExpert
from moe_model.layers.router import Routing, RowSelection

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
NORM_EPS = 1e-5
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1}


class Scratch:
    """Memory for one operation at a time; grows and stays."""

    def __init__(self) -> None:
        self._size = 0
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._address = 0

    def address(self, num_bytes: int) -> int:
        if self._size < num_bytes:
            # The size last: who cannot have the memory must not believe that it does.
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8)
            self._address = self._bytes.data_ptr()
            self._size = num_bytes
        return self._address


@dataclass(frozen=True, slots=True)
class Runtime:
    """What all parts of a model share: the kernels of an instruction set, memory to work in, and threads."""

    kernels: object
    scratch: Scratch
    num_threads: int


class NativeNorm:
    """LayerNorm with scale and shift."""

    def __init__(self, runtime: Runtime, weight_D: Tensor, bias_D: Tensor, eps: float = NORM_EPS) -> None:
        self._kernels = runtime.kernels
        self.weight_D = weight_D.float().contiguous()
        self.bias_D = bias_D.float().contiguous()
        self.addresses = (self.weight_D.data_ptr(), self.bias_D.data_ptr())
        self.eps = eps
        self._width = len(weight_D)

    def __call__(self, x: Tensor) -> Tensor:
        num_rows, width = _rows(x, len(self.weight_D))
        y = torch.empty_like(x)
        addresses = (self.weight_D.data_ptr(), self.bias_D.data_ptr())
        _kernels.layer_norm(self._kernels, x.data_ptr(), num_rows, width, *addresses, self.eps, y.data_ptr())
        return y


class NativeLinear:
    """A packed matrix and what surrounds its product. `scale_O` belongs to int8 weights."""

    def __init__(
        self,
        runtime: Runtime,
        weight_OI: Tensor,
        scale_O: Tensor | None,
        bias_O: Tensor | None,
        activation: Activation,
        norm: NativeNorm | None,
    ) -> None:
        self.num_out, self.num_in = weight_OI.shape
        self.norm = norm
        self._runtime = runtime
        self._panels = pack(weight_OI)
        self._scale_O = scale_O
        self._bias_O = None if bias_O is None else bias_O.float().contiguous()
        self._activation = _ACTIVATIONS[activation]
        self._norm_address = (0, 0, 0.0)
        if norm is not None:
            assert len(norm.weight_D) == self.num_in
            self._norm_address = (*norm.addresses, norm.eps)
        self.matrix = _kernels.matrix(
            _DTYPES[weight_OI.dtype],
            self._panels.data_ptr(),
            _address(scale_O),
            _address(self._bias_O),
            self.num_in,
            self.num_out,
        )

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        num_rows, _ = _rows(x, self.num_in)
        y = torch.empty(*x.shape[:-1], self.num_out)
        if residual is not None:
            assert _rows(residual, self.num_out)[0] == num_rows
        _kernels.linear(
            self._runtime.kernels,
            self.matrix,
            x.data_ptr(),
            num_rows,
            self.num_in,
            *self._norm_address,
            self._activation,
            _address(residual),
            y.data_ptr(),
            self._runtime.scratch.address(4 * num_rows * (self.num_in + 1)),
            self._runtime.num_threads,
        )
        return y


class NativeRouter:
    """The K largest logits, the lower expert first among equals, then softmax over those K."""

    def __init__(self, runtime: Runtime, gate: NativeLinear, top_k: int) -> None:
        self._kernels = runtime.kernels
        self._gate = gate
        self._top_k = top_k

    def __call__(self, x_TD: Tensor, selection: RowSelection | None = None) -> Routing:
        num_tokens, _ = _rows(x_TD, self._gate.num_in)
        logits_TE = torch.empty(num_tokens, self._gate.num_out)
        num_places = self._top_k if selection is None else selection.most
        weights_TK = torch.empty(num_tokens, num_places)
        expert_ids_TK = torch.empty(num_tokens, num_places, dtype=torch.int64)
        _kernels.route(
            self._kernels,
            self._gate.matrix,
            x_TD.data_ptr(),
            num_tokens,
            num_places,
            logits_TE.data_ptr(),
            0 if selection is None else _address(selection.allowed_TE),
            0 if selection is None else _address(selection.top_k_T),
            weights_TK.data_ptr(),
            expert_ids_TK.data_ptr(),
        )
        return Routing(weights_TK, expert_ids_TK, logits_TE)


class NativeBank:
    """All experts of a layer in one call, by the layer's C table."""

    def __init__(self, runtime: Runtime, tables: "Mapping[int, NativeTable]") -> None:
        self.runtime = runtime
        self._tables = tables

    def table(self, layer: int) -> "NativeTable | None":
        """For other C that runs it, as long as somebody keeps the table."""
        return self._tables.get(layer)

    def with_layer(self, layer: int, slots: Sequence[int], new: Mapping[int, Expert]) -> "NativeBank":
        tables, old = dict(self._tables), self._tables.get(layer)
        found = {slot: new[slot] if slot in new else _of(old, slot) for slot in slots}
        tables.pop(layer, None)
        if found:
            tables[layer] = NativeTable(found)
        return NativeBank(self.runtime, tables)

    def run_pairs(self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments) -> Tensor:
        num_pairs = sum(count for _, count in segments)
        y_PD = torch.empty(num_pairs, x_RD.shape[1])
        self._run_segments(layer, x_RD, row_index_P, segments, None, y_PD)
        return y_PD

    def run_rows(
        self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments, weights_P: Tensor
    ) -> Tensor:
        y_RD = torch.empty(x_RD.shape, dtype=torch.float32)
        self._run_segments(layer, x_RD, row_index_P, segments, weights_P, y_RD)
        return y_RD

    def run_tokens(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        table = self._tables[layer]
        num_tokens, _ = _rows(x_TD, table.width)
        ids_TK, weights_TK = routing.expert_ids_TK, routing.weights_TK
        assert ids_TK.shape == weights_TK.shape
        assert ids_TK.shape[0] == num_tokens
        # An absent expert's id is the first that is no place.
        assert len(table.slots) == routing.logits_TE.shape[1]
        y_TD = torch.empty_like(x_TD)
        _kernels.run_tokens(
            self.runtime.kernels,
            table.handle,
            x_TD.data_ptr(),
            num_tokens,
            ids_TK.shape[1],
            _address(ids_TK),
            _address(weights_TK),
            0,
            y_TD.data_ptr(),
            self.runtime.scratch.address(table.scratch_bytes(ids_TK.numel())),
            self.runtime.num_threads,
        )
        return y_TD

    def _run_segments(
        self,
        layer: int,
        x_RD: Tensor,
        row_index_P: Tensor | None,
        segments: Segments,
        weights_P: Tensor | None,
        out: Tensor,
    ) -> None:
        table = self._tables[layer]
        x_RD = x_RD.float()
        num_rows, _ = _rows(x_RD, table.width)
        num_pairs = num_rows if row_index_P is None else len(row_index_P)
        assert row_index_P is None or row_index_P.dtype == torch.int32
        _kernels.run_segments(
            self.runtime.kernels,
            table.handle,
            tuple((table.places[slot], count) for slot, count in segments),
            x_RD.data_ptr(),
            num_rows,
            num_pairs,
            _address(row_index_P),
            _address(weights_P),
            out.data_ptr(),
            self.runtime.scratch.address(table.scratch_bytes(num_pairs)),
            self.runtime.num_threads,
        )


class NativeTable:
    """The modules of one layer by slot, at least one, in an order: C has pointers to their weights, which it
    does not copy. `places` is slot -> row of the C table."""

    def __init__(self, experts: Mapping[int, Expert]) -> None:
        self.experts = experts
        self.slots = tuple(experts)
        self.places = {slot: place for place, slot in enumerate(self.slots)}
        pairs = [_matrices(module) for module in experts.values()]
        self.width, self.hidden_width = pairs[0][0].num_in, pairs[0][0].num_out
        parts: list[int | object] = []
        for up, down in pairs:
            assert up.norm is not None
            assert (down.num_in, down.num_out) == (self.hidden_width, self.width)
            parts += [*up.norm.addresses, up.matrix, down.matrix]
        self.handle = _kernels.experts(NORM_EPS, self.width, self.hidden_width, *parts)

    def scratch_bytes(self, num_pairs: int) -> int:
        return _kernels.experts_scratch_bytes(self.handle, num_pairs)


def _matrices(module: Expert) -> tuple[NativeLinear, NativeLinear]:
    assert isinstance(module, GeluExpert)
    return cast("NativeLinear", module.up), cast("NativeLinear", module.down)


def _of(table: NativeTable | None, slot: int) -> Expert:
    assert table is not None, "what is not new is here"
    return table.experts[slot]


def _rows(x: Tensor, width: int) -> tuple[int, int]:
    shape = x.shape
    assert shape[-1] == width, (shape, width)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    return x.numel() // width, width


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    assert tensor.is_contiguous()
    return tensor.data_ptr()
