"""The plan of a step: which operations of C a model's parts are, layer by layer, and on which buffers.

The one place that knows. A part that is not here makes a model whose steps Python runs, part by part.
Shapes: T tokens, D d_model, H heads, G key/value heads, d head size, E experts, K experts per token; of
latent attention c latent numbers, p plain and r turning ones of a head, v its values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe_model.kernels.native.experts import NativeExpert
from moe_model.kernels.native.head_linear import NativeHeadLinear
from moe_model.kernels.native.linear import NativeLinear, NativeNorm
from moe_model.kernels.native.rotary import NativeRotary
from moe_model.kernels.native.router import NativeRouter, NativeRowGate
from moe_model.kernels.native.runtime import address_of
from moe_model.kernels.step_program import ProgramPart
from moe_model.layers.attention import AttentionForm
from moe_model.layers.dense import (
    Attention,
    Block,
    Embedding,
    FusedAttention,
    GatedNetwork,
    Join,
    ScaledJoin,
    SharedModel,
)
from moe_model.layers.latent import AbsorbedAttention

T = TypeVar("T")


class Kind(IntEnum):
    """As in src/program.h."""

    EMBED = 0
    LINEAR = 1
    HEAD_LINEAR = 2
    NORM = 3
    CLAMP = 4
    ROTATE = 5
    ATTEND = 6
    COPY = 7
    ROUTE = 8
    EXPERTS = 9
    ANSWER = 10
    GATE = 11
    JOIN = 12


class InexpressibleError(Exception):
    """A part that has no operation of C."""


# The residual stream.
STREAM = 0


@dataclass(frozen=True, slots=True)
class ExpertBuffers:
    """Of a layer that has experts: where its rows, their routing and their answer are, and how wide it is."""

    layer: int
    rows: int
    logits: int
    weights: int
    ids: int
    answer: int
    n_experts: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`widths` are of the buffers, in values of 4 bytes; `parts` are of the instructions. `stops` has each
    instruction at which a program may stop, by its number."""

    n_layers: int
    widths: tuple[int, ...]
    instructions: tuple[tuple[Any, ...], ...]
    parts: tuple[ProgramPart, ...]
    stops: dict[int, ExpertBuffers]


def plan_of(shared: SharedModel) -> Plan:
    """Raises InexpressibleError."""
    planner = _Planner(shared.embed)
    for layer, block in enumerate(shared.blocks):
        planner.add_block(layer, block)
    instructions, parts = tuple(planner.instructions), tuple(planner.parts)
    return Plan(len(shared.blocks), tuple(planner.widths), instructions, parts, planner.stops)


class _Planner:
    """Writes instructions one after the other. Buffers of a name and a width are one for all layers."""

    def __init__(self, embed: Embedding) -> None:
        weight_VD, positions_SD = embed.weight_VD, embed.positions_SD
        _must(embed.dtype == torch.float32 and weight_VD.is_cpu and weight_VD.is_contiguous())
        _must(weight_VD.dtype in (torch.float32, torch.bfloat16))
        _must(positions_SD is None or positions_SD.dtype == torch.float32)
        num_ids, width = weight_VD.shape
        self.widths = [width]
        self.instructions: list[tuple[Any, ...]] = []
        self.stops: dict[int, ExpertBuffers] = {}
        self.parts: list[ProgramPart] = []
        self._part: ProgramPart = "attention"
        self._buffers: dict[tuple[str, int], int] = {}
        self._add(
            Kind.EMBED,
            *(weight_VD.data_ptr(), weight_VD.dtype == torch.bfloat16, num_ids, embed.scale),
            *(address_of(positions_SD), 0 if positions_SD is None else len(positions_SD)),
        )

    def add_block(self, layer: int, block: Block) -> None:
        self._part = "attention"
        self._attention(layer, block.attention)
        self._part, rows = "routing", STREAM
        if block.ffn_norm is not None:
            rows = self._buffer("rows", self._width)
            self._norm(_is(NativeNorm, block.ffn_norm), (STREAM, 0), (rows, 0))
        answer, always = self._buffer("answer", self._width), None
        if block.gate is None:
            assert block.for_all is not None
            self._part = "for all"
            self._network(block.for_all, rows, answer)
        else:
            router = _is(NativeRouter, block.gate.router)
            buffers = self._route(layer, router, rows, answer)
            if block.for_all is not None:
                self._part = "for all"
                always = self._buffer("always", self._width)
                self._network(block.for_all, rows, always)
            self._part = "answers"
            self._stop(Kind.ANSWER, buffers)
        self._part = "for all"
        self._join(answer, always, block.join)

    def _attention(self, layer: int, attention: Attention) -> None:
        if isinstance(attention, FusedAttention):
            self._fused(layer, attention)
        else:
            self._absorbed(layer, _is(AbsorbedAttention, attention))

    def _fused(self, layer: int, attention: FusedAttention) -> None:
        qkv = _is(NativeLinear, attention.qkv)
        n_heads, n_kv_heads = attention.n_heads, attention.n_kv_heads
        width = qkv.matrix.num_out
        head_dim = width // (n_heads + 2 * n_kv_heads)
        heads = self._linear(qkv, STREAM, "heads")
        keys, values = n_heads * head_dim, (n_heads + n_kv_heads) * head_dim
        if attention.norms is not None:
            parts = (attention.norms.query, 0, n_heads), (attention.norms.key, keys, n_kv_heads)
            for norm, at, count in parts:
                num_norms = 1 if attention.norms.is_whole else count
                self._norm(_is(NativeNorm, norm), (heads, at), (heads, at), num_norms)
        if attention.clamp is not None:
            self._add(Kind.CLAMP, attention.clamp, width, heads, 0)
        if attention.rotary is not None:
            self._rotate(_is(NativeRotary, attention.rotary), n_heads + n_kv_heads, head_dim, (heads, 0))
        found = self._attend(
            layer,
            attention.form,
            *(n_heads, n_kv_heads, head_dim, head_dim),
            ((heads, 0), (heads, keys), (heads, values)),
        )
        self._merge(attention.out, found, attention.join)

    def _absorbed(self, layer: int, attention: AbsorbedAttention) -> None:
        rows, queries = STREAM, attention.queries
        if attention.norm is not None:
            rows = self._buffer("rows", self._width)
            self._norm(_is(NativeNorm, attention.norm), (STREAM, 0), (rows, 0))
        down = rows if queries.down is None else self._linear(_is(NativeLinear, queries.down), rows, "query")
        heads = self._linear(_is(NativeLinear, queries.up), down, "queries")
        key_up, rotary = _is(NativeHeadLinear, attention.key_up), _is(NativeRotary, attention.rotary)
        n_heads, num_latent, plain = key_up.num_heads, key_up.num_out, queries.plain_width
        turning = queries.turning_width
        width = num_latent + turning
        self._rotate(rotary, n_heads, turning, (heads, n_heads * plain))
        absorbed = self._head_linear(key_up, plain, heads, "absorbed")
        query = self._buffer("absorbed queries", n_heads * width)
        self._copy(n_heads, num_latent, (absorbed, 0, num_latent), (query, 0, width))
        self._copy(n_heads, turning, (heads, n_heads * plain, turning), (query, num_latent, width))
        both = self._linear(_is(NativeLinear, attention.kv_down), rows, "key and latent")
        latent = self._buffer("latent", width)
        self._norm(_is(NativeNorm, attention.kv_norm), (both, 0), (latent, 0))
        self._rotate(rotary, 1, turning, (both, num_latent))
        self._copy(1, turning, (both, num_latent, turning), (latent, num_latent, turning))
        places = (query, 0), (latent, 0), None
        seen = self._attend(layer, attention.form, n_heads, 1, width, num_latent, places)
        value_up = _is(NativeHeadLinear, attention.value_up)
        self._merge(attention.out, self._head_linear(value_up, num_latent, seen, "values"), attention.join)

    def _attend(
        self,
        layer: int,
        form: AttentionForm,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        value_width: int,
        places: tuple[tuple[int, int], tuple[int, int], tuple[int, int] | None],
    ) -> int:
        """`places` are those of queries, keys and values; returns the buffer of what was found."""
        query, key, value = places
        sinks_H = form.sinks_H
        _must(sinks_H is None or (sinks_H.dtype, sinks_H.shape) == (torch.float32, (n_heads,)))
        found = self._buffer("found", n_heads * value_width)
        self._add(
            Kind.ATTEND,
            *(layer, n_heads, n_kv_heads, head_dim, value_width),
            *(form.scale, form.window or 0, address_of(sinks_H)),
            *(*query, *key, *((None,) if value is None else value), found, 0),
        )
        return found

    def _merge(self, out: object, found: int, join: Join | None) -> None:
        linear = _is(NativeLinear, out)
        if join is None:
            self._product(linear, found, STREAM)
        else:
            answer = self._buffer("answer", self._width)
            self._product(linear, found, answer)
            self._join(answer, None, join)

    def _route(self, layer: int, router: NativeRouter, rows: int, answer: int) -> ExpertBuffers:
        n_experts, top_k = router.gate.num_out, router.top_k
        logits, weights = self._buffer("logits", n_experts), self._buffer("weights", top_k)
        # An id takes the room of two values.
        ids = self._buffer("ids", 2 * top_k)
        buffers = ExpertBuffers(layer, rows, logits, weights, ids, answer, n_experts, top_k)
        self.stops[len(self.instructions)] = buffers
        places = rows, 0, logits, 0, weights, 0, ids, 0
        self._add(Kind.ROUTE, layer, router.gate.handle, router.rule, top_k, *places)
        self._part = "experts"
        self._stop(Kind.EXPERTS, buffers)
        return buffers

    def _stop(self, kind: Kind, buffers: ExpertBuffers) -> None:
        """Rows to their experts, or their answer."""
        b = buffers
        self.stops[len(self.instructions)] = b
        self._add(kind, b.layer, b.n_experts, b.top_k, b.rows, 0, b.weights, 0, b.ids, 0, b.answer, 0)

    def _network(self, network: Callable[[Tensor], Tensor], rows: int, to: int) -> None:
        """A feed-forward network that all rows go through."""
        if isinstance(network, GatedNetwork):
            self._network(network.network, rows, to)
            gate = self._linear(_is(NativeRowGate, network.gate).linear, rows, "gate")
            self._add(Kind.GATE, to, 0, gate, 0)
        else:
            expert = _is(NativeExpert, network)
            self._product(expert.down, self._linear(expert.up, rows, "hidden"), to)

    def _join(self, answer: int, always: int | None, join: Join | None) -> None:
        scaled = ScaledJoin() if join is None else _is(ScaledJoin, join)
        norm = None if scaled.norm is None else _is(NativeNorm, scaled.norm).handle
        places = answer, 0, *((None,) if always is None else (always, 0))
        self._add(Kind.JOIN, *places, norm, scaled.scale)

    def _linear(self, linear: NativeLinear, rows: int, name: str) -> int:
        """To a buffer of this name, which is returned."""
        to = self._buffer(name, linear.matrix.num_out)
        self._product(linear, rows, to)
        return to

    def _product(self, linear: NativeLinear, rows: int, to: int) -> None:
        self._add(
            Kind.LINEAR, linear.matrix.handle, linear.norm_handle, linear.activation_code, rows, 0, to, 0
        )

    def _head_linear(self, linear: NativeHeadLinear, apart: int, rows: int, name: str) -> int:
        to = self._buffer(name, linear.num_heads * linear.num_out)
        sizes = linear.num_heads, linear.num_out, apart
        self._add(Kind.HEAD_LINEAR, linear.matrix.handle, *sizes, rows, 0, to, 0)
        return to

    def _norm(self, norm: NativeNorm, rows: tuple[int, int], to: tuple[int, int], num_heads: int = 1) -> None:
        self._add(Kind.NORM, norm.handle, num_heads, *rows, *to)

    def _rotate(self, rotary: NativeRotary, num_heads: int, head_dim: int, rows: tuple[int, int]) -> None:
        self._add(Kind.ROTATE, *rotary.in_c, num_heads, head_dim, *rows)

    def _copy(self, num_heads: int, width: int, rows: tuple[int, int, int], to: tuple[int, int, int]) -> None:
        """Both are a buffer, where in its rows the first head is, and how far apart heads are."""
        self._add(Kind.COPY, num_heads, width, rows[2], to[2], *rows[:2], *to[:2])

    def _buffer(self, name: str, width: int) -> int:
        if (name, width) not in self._buffers:
            self._buffers[name, width] = len(self.widths)
            self.widths.append(width)
        return self._buffers[name, width]

    def _add(self, kind: Kind, *operands: Any) -> None:
        self.instructions.append((int(kind), *operands))
        self.parts.append(self._part)

    @property
    def _width(self) -> int:
        return self.widths[STREAM]


def _is(kind: type[T], part: object) -> T:
    if not isinstance(part, kind):
        raise InexpressibleError(f"{type(part).__name__} is not {kind.__name__}")
    return part


def _must(is_so: bool) -> None:
    if not is_so:
        raise InexpressibleError
