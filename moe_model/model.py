"""The only forward pass: embed -> L x (attend, route, experts) -> norm -> head.

Shapes: T tokens of any number of sequences, D d_model, R rows that need logits, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.kernels.base import Router
from moe_model.kernels.step_program import PagedAttend, ProgramRun, StepProgram
from moe_model.layers.attention import Attend
from moe_model.layers.dense import Gate, SharedModel
from moe_model.layers.experts import ExpertBackend
from moe_model.layers.forced_experts import ForcedRows
from moe_model.layers.router import Routing

# Called with (layer, routing) after each router, for a caller that wants to watch.
Observe = Callable[[int, Routing], None]
# Called with columns_TLK, uint16 in int16's place, once a step that is not watched otherwise is done.
Record = Callable[[Tensor], None]
# (layer, x_TD) -> where a layer's rows go.
Route = Callable[[int, Tensor], Routing]


@dataclass(frozen=True, slots=True, eq=False)
class LayerRouters:
    """A Route by one router for each layer, whatever the rows; None for a dense one."""

    routers: tuple[Router | None, ...]

    def __call__(self, layer: int, x_TD: Tensor) -> Routing:
        router = self.routers[layer]
        assert router is not None, "a dense layer routes nothing"
        return router(x_TD)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of a batch that go through the layers together. `route` None: as the model's own routers say,
    among what is `forced`. With `record`, `observe` is called only where the layers' routers are not all run
    in one call."""

    token_ids_T: Tensor
    positions_T: Tensor
    attend: Attend
    observe: Observe | None = None
    route: Route | None = None
    forced: ForcedRows | None = None
    record: Record | None = None


class Model:
    """A decoder whose attention and whose experts are passed in, and whose routing may be."""

    def __init__(
        self,
        config: ModelConfig,
        shared: SharedModel,
        experts: ExpertBackend,
        program: StepProgram | None = None,
    ) -> None:
        """`program`: all layers of `shared` in one call; None: there is none."""
        self.config = config
        self.program = program
        self._shared = shared
        self._experts = experts

    @property
    def dtype(self) -> torch.dtype:
        return self._shared.embed.weight_VD.dtype

    @property
    def device(self) -> torch.device:
        return self._shared.embed.weight_VD.device

    @property
    def gates(self) -> tuple[Gate | None, ...]:
        """By layer, None for a dense one."""
        return tuple(block.gate for block in self._shared.blocks)

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attend: Attend,
        observe: Observe | None = None,
        route: Route | None = None,
    ) -> Tensor:
        """Returns the last hidden states h_TD, before the output norm."""
        return self.forward_parts([Part(token_ids_T, positions_T, attend, observe, route)])

    def forward_parts(self, parts: Sequence[Part]) -> Tensor:
        """Several batches in flight: while one is at the experts, the next is in attention. h_TD of all.

        Layer for layer the parts go in their order, so a later one may attend to what an earlier one wrote.
        Source: the ping-pong pipeline of MegaScale-Infer (Zhu et al., 2025).
        """
        h_parts: list[Tensor] = []
        # Experts in C are waited for in C: not while other parts could go on.
        in_c = self._experts.in_c if len(parts) == 1 else None
        runs = [self._run(part, in_c, h_parts) for part in parts]
        for _ in range(self.config.n_layers + 1):
            for run in runs:
                next(run, None)
        return h_parts[0] if len(h_parts) == 1 else torch.cat(h_parts)

    def _run(self, part: Part, in_c: object | None, h_parts: list[Tensor]) -> Iterator[None]:
        """Layer by layer, or all in one call where kernels attend over their cache: the same numbers.

        Stops whenever its rows are at the experts; ends by handing in its hidden states.
        """
        program, route = self.program, part.route
        if program is None or not isinstance(part.attend, PagedAttend):
            return self._layers(part, h_parts)
        if isinstance(route, LayerRouters) and (other := program.with_routers(route.routers)) is not None:
            program, route = other, None
        num_tokens, wants_record = len(part.token_ids_T), part.record is not None and route is None
        chosen_TLK = program.room_for_choices(num_tokens) if wants_record else None
        is_watched = route is not None or (part.observe is not None and chosen_TLK is None)
        run = program.start(
            *(part.token_ids_T, part.positions_T, part.attend, in_c),
            stops_at_routers=is_watched,
            forced=part.forced,
            chosen_TLK=chosen_TLK,
        )
        return self._stops(run, part, h_parts, chosen_TLK)

    def _stops(
        self, run: ProgramRun, part: Part, h_parts: list[Tensor], chosen_TLK: Tensor | None
    ) -> Iterator[None]:
        """What a program leaves to its caller: routes that are watched or not its own, and experts that are
        not its kernels'."""
        while (stop := run.to_experts()) is not None:
            layer, n_TD, routing = stop.layer, stop.x_TD, stop.routing
            if routing is None:
                gate = self._shared.blocks[layer].gate
                assert gate is not None
                routing = _route(part, layer, gate, n_TD)
            if stop.is_begun:
                begun = self._experts.take_over(layer, n_TD, routing)
            else:
                begun = self._experts.begin(layer, n_TD, routing)
                run.to_answer()
            yield
            run.answer(self._experts.finish(begun))
        h_parts.append(run.result())
        if part.record is not None and chosen_TLK is not None:
            part.record(chosen_TLK)

    def _layers(self, part: Part, h_parts: list[Tensor]) -> Iterator[None]:
        """One part of the model after the other: what a program must equal, bit by bit.

        A part that comes first stays ahead in dense layers too, where it does not stop.
        """
        x_TD = self._shared.embed(part.token_ids_T, part.positions_T)
        for layer, block in enumerate(self._shared.blocks):
            attention = block.attention
            q_THd, kept = attention.project(x_TD, part.positions_T)
            x_TD = attention.merge(part.attend(layer, attention.form, q_THd, kept), x_TD)
            n_TD = block.ffn_rows(x_TD)
            if block.gate is None:
                assert block.for_all is not None
                x_TD = block.joined(block.for_all(n_TD), x_TD)
                continue
            begun = self._experts.begin(layer, n_TD, _route(part, layer, block.gate, n_TD))
            # Computed while the rows are at the experts.
            always_TD = None if block.for_all is None else block.for_all(n_TD)
            yield
            y_TD = self._experts.finish(begun)
            x_TD = block.joined(y_TD if always_TD is None else y_TD + always_TD, x_TD)
        h_parts.append(x_TD)

    def logits(self, h_RD: Tensor) -> Tensor:
        """Returns float32 logits_RV of the given rows."""
        logits_RV = self._shared.head(h_RD).float()
        return logits_RV if self._shared.logits_scale == 1.0 else logits_RV / self._shared.logits_scale


def _route(part: Part, layer: int, gate: Gate, n_TD: Tensor) -> Routing:
    """As the part or the layer's own router says; the part's watcher is told."""
    if part.route is not None:
        routing = part.route(layer, n_TD)
    else:
        routing = gate.router(n_TD, None if part.forced is None else part.forced.selection(layer))
    if part.observe is not None:
        part.observe(layer, routing)
    return routing
