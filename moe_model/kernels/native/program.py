"""A model's layers as one program of C. Shapes: as in moe_model/kernels/step_program.py."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from moe_model.kernels.base import Contexts, Router
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.paged import check_stored
from moe_model.kernels.native.plan import STREAM, InexpressibleError, Kind, Plan, plan_of
from moe_model.kernels.native.runtime import Runtime, address_of
from moe_model.kernels.step_program import PagedAttend, PagedCache, ProgramPart, Stop
from moe_model.layers.dense import Block, Gate, SharedModel
from moe_model.layers.forced_experts import ForcedRows
from moe_model.layers.router import Routing

# Memory for a step of so many tokens is kept; larger steps are few, and what they need is large.
KEPT_TOKENS = 256
# What is said of a step whose experts are not forced.
_NOT_FORCED = (0, 0, 0, 0, 0)
# A column, and the one after the last, in two bytes.
_MOST_COLUMNS = (1 << 16) - 1


class NativeProgram:
    """As StepProgram. Keeps the parts alive that C points into."""

    def __init__(self, runtime: Runtime, shared: SharedModel) -> None:
        """Raises InexpressibleError for a part that is not in C."""
        self.runtime, self.plan, self._shared = runtime, plan_of(shared), shared
        plan = self.plan
        self._rerouted: tuple[tuple[Router | None, ...], NativeProgram | None] | None = None
        self.handle = _kernels.program(runtime.kernels, plan.n_layers, plan.widths, plan.instructions)
        self._choices = _choices(plan)
        self._arenas: list[Arena] = []
        self._cache: tuple[PagedCache, object] | None = None

    def start(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attend: PagedAttend,
        experts: object | None,
        *,
        stops_at_routers: bool,
        forced: ForcedRows | None = None,
        chosen_TLK: Tensor | None = None,
    ) -> "NativeRun":
        num_tokens = len(token_ids_T)
        for rows in (token_ids_T, positions_T):
            assert rows.dtype == torch.int64
            assert rows.shape == (num_tokens,)
            assert rows.is_contiguous()
        cache = self._cache_in_c(attend)
        step = _kernels.program_step(
            self.handle,
            cache,
            None if stops_at_routers else experts,
            stops_at_routers,
            self.runtime.num_threads,
            num_tokens,
            token_ids_T.data_ptr(),
            positions_T.data_ptr(),
            *_forced_in_c(forced, num_tokens),
            address_of(chosen_TLK),
            *(value for contexts in attend.contexts for value in _context_in_c(contexts, num_tokens)),
        )
        return NativeRun(
            self, step, num_tokens, (token_ids_T, positions_T, attend, experts, cache, forced, chosen_TLK)
        )

    def room_for_choices(self, num_tokens: int) -> Tensor | None:
        if self._choices is None:
            return None
        return torch.empty(num_tokens, *self._choices, dtype=torch.int16)

    def with_routers(self, routers: tuple[Router | None, ...]) -> "NativeProgram | None":
        if self._rerouted is None or self._rerouted[0] is not routers:
            self._rerouted = routers, self._with(routers)
        return self._rerouted[1]

    def _with(self, routers: tuple[Router | None, ...]) -> "NativeProgram | None":
        blocks = [
            block if router is None else replace(block, gate=Gate(router, _gate_of(block).weights))
            for block, router in zip(self._shared.blocks, routers, strict=True)
        ]
        try:
            return NativeProgram(self.runtime, replace(self._shared, blocks=blocks))
        except InexpressibleError:
            return None

    def take_arena(self, num_tokens: int, num_bytes: int) -> "Arena":
        """Memory that no other run has, until it is given back."""
        if num_tokens > KEPT_TOKENS:
            return Arena(num_bytes)
        while self._arenas:
            arena = self._arenas.pop()
            if arena.num_bytes >= num_bytes:
                return arena
        return Arena(num_bytes)

    def give_back(self, arena: "Arena", num_tokens: int) -> None:
        """After the run."""
        if num_tokens <= KEPT_TOKENS:
            self._arenas.append(arena)

    def times(self, *, go_on: bool) -> dict[ProgramPart, float]:
        seconds = dict.fromkeys(get_args(ProgramPart), 0.0)
        times = _kernels.program_times(self.handle, go_on)
        for part, of_instruction in zip(self.plan.parts, times, strict=True):
            seconds[part] += of_instruction
        return seconds

    def _cache_in_c(self, attend: PagedAttend) -> object:
        cache = attend.cache
        if self._cache is None or self._cache[0] is not cache:
            self._cache = cache, _cache_in_c(attend, self.plan.n_layers)
        return self._cache[1]


class Arena:
    """The buffers of a run, and what Python has seen of them."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._bytes = torch.empty(num_bytes, dtype=torch.uint8)
        self.address = self._bytes.data_ptr()
        self._views: dict[tuple[int, int], Tensor] = {}

    def view(self, program: NativeProgram, num_tokens: int, buffer: int, dtype: torch.dtype) -> Tensor:
        """The rows of a buffer, [T, width]; a buffer has always one dtype."""
        found = self._views.get((num_tokens, buffer))
        if found is None:
            offset = _kernels.buffer_offset(program.handle, num_tokens, buffer)
            num_bytes = 4 * num_tokens * program.plan.widths[buffer]
            found = self._bytes[offset : offset + num_bytes].view(dtype).view(num_tokens, -1)
            self._views[num_tokens, buffer] = found
        return found


class NativeRun:
    """As ProgramRun."""

    def __init__(self, program: NativeProgram, step: object, num_tokens: int, kept: object) -> None:
        """`kept` is what C points into."""
        self._program, self._step, self._kept = program, step, kept
        self._num_tokens = num_tokens
        self._stream_TD = torch.empty(num_tokens, program.plan.widths[STREAM])
        arena_bytes, self._scratch_bytes = _kernels.program_bytes(program.handle, step)
        self._arena = program.take_arena(num_tokens, arena_bytes)
        # The next instruction.
        self._at = 0

    def to_experts(self) -> Stop | None:
        self._at = self._run()
        plan = self._program.plan
        if self._at == len(plan.instructions):
            self._program.give_back(self._arena, self._num_tokens)
            return None
        kind, buffers = plan.instructions[self._at][0], plan.stops[self._at]
        routing = None
        if kind != Kind.ROUTE:
            routing = Routing(
                self._view(buffers.weights),
                self._view(buffers.ids, torch.int64),
                self._view(buffers.logits),
            )
        return Stop(buffers.layer, self._view(buffers.rows), routing, is_begun=kind == Kind.ANSWER)

    def to_answer(self) -> None:
        # A caller that routes the rows begins them too: ROUTE is followed by EXPERTS.
        self._at += 2 if self._program.plan.instructions[self._at][0] == Kind.ROUTE else 1
        self._at = self._run()

    def answer(self, y_TD: Tensor) -> None:
        self._view(self._program.plan.stops[self._at].answer).copy_(y_TD)
        self._at += 1

    def result(self) -> Tensor:
        assert self._at == len(self._program.plan.instructions)
        return self._stream_TD

    def _run(self) -> int:
        """Returns the number of the instruction at which it stopped."""
        program = self._program
        scratch = program.runtime.scratch.address(self._scratch_bytes)
        stream = self._stream_TD.data_ptr()
        return _kernels.run_program(
            program.handle, self._step, self._arena.address, scratch, stream, self._at
        )

    def _view(self, buffer: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if buffer == STREAM:
            return self._stream_TD
        return self._arena.view(self._program, self._num_tokens, buffer, dtype)


def _gate_of(block: Block) -> Gate:
    assert block.gate is not None, "a dense layer has no router"
    return block.gate


def _choices(plan: Plan) -> tuple[int, int] | None:
    """How many routers there are, and to how many experts each of them sends a row; None where they
    differ."""
    of_routers = [plan.stops[n] for n, each in enumerate(plan.instructions) if each[0] == Kind.ROUTE]
    fits = all(each.n_experts <= _MOST_COLUMNS for each in of_routers)
    most = {each.top_k for each in of_routers}
    return (len(of_routers), most.pop()) if fits and len(most) == 1 else None


def _forced_in_c(forced: ForcedRows | None, num_tokens: int) -> tuple[int, ...]:
    if forced is None:
        return _NOT_FORCED
    ids_LPC, rows_T = forced.table.ids_LPC, forced.rows_T
    assert rows_T.dtype == torch.int64
    assert rows_T.shape == (num_tokens,)
    assert ids_LPC.is_cpu
    return (address_of(ids_LPC), address_of(rows_T), *ids_LPC.shape)


def _context_in_c(contexts: Contexts, num_tokens: int) -> tuple[int, ...]:
    assert len(contexts.slots_T) == num_tokens
    num_sequences, table_stride = contexts.block_table_NB.shape
    return (
        *(contexts.slots_T.data_ptr(), contexts.sequences_T.data_ptr(), contexts.lengths_T.data_ptr()),
        *(contexts.block_table_NB.data_ptr(), num_sequences, table_stride, contexts.longest),
    )


def _cache_in_c(attend: PagedAttend, num_layers: int) -> object:
    """Raises ConfigError for a cache in a layout that these kernels do not read."""
    cache = attend.cache
    num_blocks = [0] * len(attend.contexts)
    layers = []
    for layer in range(num_layers):
        stored, group = cache.layer(layer), cache.group_of(layer)
        check_stored(stored, attend.contexts[group].layout)
        num_blocks[group] = len(stored[0])
        layers.append(tuple(_layer_in_c(stored, group)))
    return _kernels.paged_cache(cache.block_size, tuple(num_blocks), tuple(layers))


def _layer_in_c(stored: tuple[Tensor, ...], group: int) -> Iterator[int]:
    keys, values = stored[0], stored[1] if len(stored) > 1 else None
    yield from (keys.data_ptr(), 0 if values is None else values.data_ptr(), keys.dtype == torch.bfloat16)
    yield from (group, keys.shape[1], keys.shape[3], 0 if values is None else values.shape[3])
