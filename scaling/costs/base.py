"""What planning and simulating ask of costs. Seconds everywhere; rows are tokens of a step."""

from collections.abc import Sequence
from typing import Protocol


class NodeCosts(Protocol):
    """One model on one machine, which has `cores` of its own for it while nothing else runs there.

    Where two processes of one machine compute at the same time, each takes longer: the simulation gives each
    its share of the cores and of the memory's bandwidth; these are the times alone.
    """

    def step(self, num_rows: int, num_drawn: int) -> float:
        """The engine's own work of a step: scheduling, sampling, outputs; no layer."""

    def front(self, num_tokens: int) -> float:
        """Other processes' work for the tokens of one step that go out: messages, streams, the load's own
        client."""

    def shared_layer(self, layer: int, num_rows: int, positions: int, read: float) -> float:
        """Norms, attention, router and shared expert of one layer; `positions`: that all rows together attend
        to; `read`: those whose keys and values come from memory, as each sequence has its own and its rows
        share them."""

    def head(self, num_rows: int) -> float:
        """Embedding, last norm, logits."""

    def experts(self, rows_E: Sequence[int]) -> float:
        """Experts of one layer in one call; the rows of each that has any."""

    def call(self, bytes_out: int, bytes_back: int) -> float:
        """The coordinator's own time for one call to a worker: sending, receiving, adding up."""

    def answer(self, bytes_out: int, bytes_back: int) -> float:
        """A worker's own time for a call, beside `experts`."""

    def forced(self, num_rows: int) -> float:
        """Of one layer, where the routing is forced."""
