"""A model's layers as a program: what kernels may make of all of them, to run a step in one call.

It stops at what its caller computes: at routers, where a step has routes of its own or is watched, and at
experts that its kernels do not have. Its numbers are those of the layers, called one by one, bit by bit.
Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from moe_model.kernels.base import Contexts, PagedAttention, Router
from moe_model.layers.attention import AttentionForm, Kept
from moe_model.layers.forced_experts import ForcedRows
from moe_model.layers.router import Routing

# What an instruction belongs to: a feed-forward network of all rows, and joining what it says, is "for all";
# "experts" is where rows go to them, or are computed, "answers" where they come back.
ProgramPart = Literal["attention", "routing", "experts", "for all", "answers"]


class PagedCache(Protocol):
    """What layers keep of all sequences' tokens; which is always in the same place."""

    @property
    def block_size(self) -> int: ...

    def layer(self, layer: int) -> tuple[Tensor, ...]:
        """The parts of a layer; their first size is blocks."""

    def group_of(self, layer: int) -> int:
        """Which of a step's contexts is the layer's."""


@dataclass(frozen=True, slots=True, eq=False)
class PagedAttend:
    """`Attend` for a step over a paged cache, by kernels that take all rows of a layer in one call.

    `contexts` are by group of the cache's layers.
    """

    attend_paged: PagedAttention
    cache: PagedCache
    contexts: Sequence[Contexts]

    def __call__(self, layer: int, form: AttentionForm, q_THd: Tensor, kept: Kept) -> Tensor:
        cache = self.cache
        return self.attend_paged(form, q_THd, kept, cache.layer(layer), self.contexts[cache.group_of(layer)])


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """A layer's rows wait for their experts; `routing` None: and for their router. `is_begun`: they are on
    their way, but what sent them without the interpreter could not finish. All of it is the program's
    memory, which is good until the step ends."""

    layer: int
    x_TD: Tensor
    routing: Routing | None
    is_begun: bool


class ProgramRun(Protocol):
    """One step, from its embedding to its last hidden states."""

    def to_experts(self) -> Stop | None:
        """Runs to the next layer whose experts are the caller's to begin; None: the step is done."""

    def to_answer(self) -> None:
        """Once they are begun: computes what the layer has for all rows, while its experts are at work."""

    def answer(self, y_TD: Tensor) -> None:
        """What the experts of the layer say. Nothing waits for their rows any more."""

    def result(self) -> Tensor:
        """h_TD, once the step is done."""


class StepProgram(Protocol):
    """Of one model."""

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
    ) -> ProgramRun:
        """`experts`: what runs them without the interpreter, ExpertBackend.in_c. Several runs may be under
        way. Routers that are the program's own choose among what is `forced`, and write what they choose to
        `chosen_TLK`, which is of `room_for_choices`."""

    def room_for_choices(self, num_tokens: int) -> Tensor | None:
        """Columns of the routers of all layers that have any, int16 that stand for uint16; None where they
        cannot be written."""

    def with_routers(self, routers: tuple[Router | None, ...]) -> "StepProgram | None":
        """The same but for the routers, None of a dense layer; made once for a tuple. None: not all of them
        are in C."""

    def times(self, *, go_on: bool) -> Mapping[ProgramPart, float]:
        """Seconds by part since this was last asked, as far as steps were timed; whether they are from now on
        is `go_on`."""
