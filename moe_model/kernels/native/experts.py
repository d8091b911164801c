"""Experts over the C kernels: all of a layer in one call. Shapes: as in moe_model/kernels/base.py."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_model.kernels.base import Segments
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import ACTIVATIONS, NativeLinear, NativeMatrix, NativeNorm
from moe_model.kernels.native.runtime import Runtime, address_of, rows_of
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_ffn import matrix_of
from moe_model.layers.router import Routing
from moe_model.layers.specs import ExpertSpec
from moe_model.names import WeightForm


class NativeExpert:
    """One expert; of a gated one, gate and up are one matrix."""

    def __init__(
        self, runtime: Runtime, spec: ExpertSpec, tensors: Mapping[str, Tensor], *, form: WeightForm = "model"
    ) -> None:
        """`tensors` are checked to be those of the spec."""
        self.spec = spec
        norm = None
        if spec.norm is not None:
            norm = NativeNorm(runtime, spec.norm, tensors["norm.weight"], tensors.get("norm.bias"))
        gate_FD = matrix_of(tensors, "gate.weight", form) if spec.is_gated else None
        up = NativeMatrix(
            matrix_of(tensors, "up.weight", form),
            tensors.get("up.bias"),
            gate_FD,
            tensors.get("gate.bias"),
            form=form,
            limit=spec.limit,
        )
        self.up = NativeLinear(runtime, up, spec.activation, norm)
        down = NativeMatrix(matrix_of(tensors, "down.weight", form), tensors.get("down.bias"), form=form)
        self.down = NativeLinear(runtime, down)

    def __call__(self, x_RD: Tensor) -> Tensor:
        return self.down(self.up(x_RD))

    @property
    def handles(self) -> tuple[object, object, object]:
        """Norm (or None), up and down, as C's table of experts takes them."""
        norm = None if self.up.norm is None else self.up.norm.handle
        return norm, self.up.matrix.handle, self.down.matrix.handle


class NativeBank:
    """All experts of a layer in one call, by the layer's C table."""

    def __init__(self, runtime: Runtime, tables: "Mapping[int, NativeTable]") -> None:
        self.runtime = runtime
        self._tables = tables
        num_layers = 1 + max(tables, default=-1)
        handles = (tables[layer].handle if layer in tables else None for layer in range(num_layers))
        self.in_c = _kernels.layer_tables(*handles)

    def table(self, layer: int) -> "NativeTable | None":
        """For other C that runs it, as long as its caller keeps the table."""
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
        num_tokens = rows_of(x_TD, table.width)
        ids_TK, weights_TK = routing.expert_ids_TK, routing.weights_TK
        assert ids_TK.shape == weights_TK.shape
        assert ids_TK.shape[0] == num_tokens
        # An absent expert's id is the first that is no column.
        num_slices, rest = divmod(len(table.slots), routing.logits_TE.shape[1])
        assert not rest
        num_pairs = ids_TK.shape[1] * num_slices
        y_TD = torch.empty_like(x_TD)
        _kernels.run_tokens(
            self.runtime.kernels,
            table.handle,
            x_TD.data_ptr(),
            num_tokens,
            ids_TK.shape[1],
            num_slices,
            address_of(ids_TK),
            address_of(weights_TK),
            0,
            y_TD.data_ptr(),
            self.runtime.scratch.address(_kernels.tokens_scratch_bytes(table.handle, num_tokens, num_pairs)),
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
        num_rows = rows_of(x_RD, table.width)
        num_pairs = num_rows if row_index_P is None else len(row_index_P)
        assert row_index_P is None or row_index_P.dtype == torch.int32
        _kernels.run_segments(
            self.runtime.kernels,
            table.handle,
            tuple((table.places[slot], count) for slot, count in segments),
            x_RD.data_ptr(),
            num_rows,
            num_pairs,
            address_of(row_index_P),
            address_of(weights_P),
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
        parts = [_native(module) for module in experts.values()]
        first, up = parts[0], parts[0].up.matrix
        assert {expert.spec.activation for expert in parts} == {first.spec.activation}
        self.width, self.hidden_width = up.num_in, up.num_out
        handles = (handle for expert in parts for handle in expert.handles)
        activation = ACTIVATIONS[first.spec.activation]
        self.handle = _kernels.experts(self.width, self.hidden_width, activation, *handles)

    def scratch_bytes(self, num_pairs: int) -> int:
        return _kernels.experts_scratch_bytes(self.handle, num_pairs)


def _native(module: Expert) -> NativeExpert:
    assert isinstance(module, NativeExpert)
    return module


def _of(table: NativeTable | None, slot: int) -> Expert:
    assert table is not None, "what is not new is here"
    return table.experts[slot]
