"""Constraints that were built to be checked and wait for the requests that they were built for."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from coordinator.engine.messages.request import ConstraintSource

C = TypeVar("C")


class ReadyConstraints(Generic[C]):
    """Each is taken once. Forgets the sources that were not heard of for longest: a request that was refused
    after its check never takes its own. Thread-safe."""

    def __init__(self, max_sources: int) -> None:
        self._max_sources = max_sources
        self._waiting: OrderedDict[ConstraintSource, list[C]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, source: ConstraintSource, constraint: C) -> None:
        with self._lock:
            self._waiting.setdefault(source, []).append(constraint)
            self._waiting.move_to_end(source)
            while len(self._waiting) > self._max_sources:
                self._waiting.popitem(last=False)

    def take(self, source: ConstraintSource) -> C | None:
        with self._lock:
            waiting = self._waiting.get(source)
            if waiting is None:
                return None
            constraint = waiting.pop()
            if not waiting:
                del self._waiting[source]
            return constraint
