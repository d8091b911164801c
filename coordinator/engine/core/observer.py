"""EngineObserver: what an engine tells of its steps."""

from collections.abc import Sequence
from typing import Protocol

from coordinator.engine.messages.records import StepRecord


class EngineObserver(Protocol):
    """Called on the engine's thread; must be quick and must not raise."""

    def step(self, record: StepRecord) -> None: ...


class EngineObservers:
    """Tells each in turn."""

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = tuple(observers)

    def step(self, record: StepRecord) -> None:
        for observer in self._observers:
            observer.step(record)
