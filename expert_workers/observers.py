"""What is told of experts on workers: of dispatches by the pool, of losses and moves by the supervisor."""

from collections.abc import Sequence
from typing import Protocol

from expert_workers.dispatch.pool_stats import DispatchObserver, DispatchRecord
from expert_workers.supervision.options import SupervisionObserver
from expert_workers.transports.base import FailureReason


class ExpertObserver(DispatchObserver, SupervisionObserver, Protocol):
    """Each method on the thread that its part says."""


class ExpertObservers:
    """Tells each in turn."""

    def __init__(self, observers: Sequence[ExpertObserver]) -> None:
        self._observers = tuple(observers)

    def dispatched(self, records: Sequence[DispatchRecord]) -> None:
        for observer in self._observers:
            observer.dispatched(records)

    def lost(self, rank: int, reason: FailureReason) -> None:
        for observer in self._observers:
            observer.lost(rank, reason)

    def restarted(self, rank: int, reason: FailureReason) -> None:
        for observer in self._observers:
            observer.restarted(rank, reason)

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        for observer in self._observers:
            observer.rebalanced(num_moved, seconds)
