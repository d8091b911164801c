"""Constraints that were built to be checked and wait for the requests that they were built for."""

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from coordinator.engine.messages.request import ConstraintSource

C = TypeVar("C")


class ReadyConstraints(Generic[C]):
    """Each is taken once; a request that is refused after its check never takes its own. So at most
    `max_waiting` are held, and those go first whose source was not heard of for longest. Thread-safe."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._waiting: OrderedDict[ConstraintSource, deque[C]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, source: ConstraintSource, constraint: C) -> None:
        with self._lock:
            self._waiting.setdefault(source, deque()).append(constraint)
            self._waiting.move_to_end(source)
            self._num_waiting += 1
            if self._num_waiting > self._max_waiting:
                self._pop(next(iter(self._waiting)))

    def take(self, source: ConstraintSource) -> C | None:
        with self._lock:
            return self._pop(source) if source in self._waiting else None

    def _pop(self, source: ConstraintSource) -> C:
        waiting = self._waiting[source]
        constraint = waiting.popleft()
        if not waiting:
            del self._waiting[source]
        self._num_waiting -= 1
        return constraint
