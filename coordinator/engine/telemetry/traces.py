"""Steps of requests that have a trace, told with their dispatches to those that keep the traces."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from coordinator.engine.messages.records import DispatchSpan, StepRecord, TracedStep


class Dispatched(Protocol):
    """What is read of a dispatch; a pool's DispatchRecord has it."""

    @property
    def layer(self) -> int: ...
    @property
    def start_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def rows(self) -> Mapping[int, int]: ...


class StepTraces:
    """An EngineObserver and an ExpertObserver. Nothing is told of a step without a traced request."""

    def __init__(self) -> None:
        self._tell: tuple[Callable[[TracedStep], None], ...] = ()
        self._dispatches: list[Dispatched] = []

    def follow(self, tell: Callable[[TracedStep], None]) -> None:
        """`tell` is called on the engine's thread; it must be quick and must not raise."""
        self._tell = (*self._tell, tell)

    def dispatched(self, records: Sequence[Dispatched]) -> None:
        self._dispatches += records

    def step(self, record: StepRecord) -> None:
        """What was dispatched since the last one was this step's."""
        dispatches, self._dispatches = self._dispatches, []
        if not record.traces:
            return
        traced = TracedStep(record, tuple(map(_span, dispatches)))
        for tell in self._tell:
            tell(traced)

    def lost(self, rank: int, reason: StrEnum) -> None:
        """Part of no request, as the next two."""

    def restarted(self, rank: int, reason: StrEnum) -> None: ...

    def rebalanced(self, num_moved: int, seconds: float) -> None: ...


def _span(record: Dispatched) -> DispatchSpan:
    rows = record.rows
    return DispatchSpan(record.layer, record.start_ns, record.end_ns, len(rows), sum(rows.values()))
