"""Gate: which calls may come in, and which are in. Knows no transport; lives on one event loop.

STARTING --open--> OPEN --drain--> DRAINING
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from coordinator.api.requests.admission import Admission
from coordinator.api.shared.errors import ApiError, Reason, duplicate_request_id
from coordinator.api.shared.served_model import ServedModel
from coordinator.engine.client.base import RequestEngine

# For callers to hear that their calls were ended, on a busy machine too; one who reads nothing is not waited
# for any longer.
TELLING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Backend:
    """What answers requests."""

    model: ServedModel
    engine: RequestEngine


class Gate:
    """Admits calls while open; counts, waits for and ends the admitted ones when the server stops."""

    def __init__(self, admission: Admission | None = None) -> None:
        self.admission = admission or Admission()
        self._backend: Backend | None = None
        self._draining = False
        self._calls: set[asyncio.Task[object]] = set()
        self._evicted: set[asyncio.Task[object]] = set()
        self._request_ids: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    def open(self, backend: Backend) -> None:
        self._backend = backend

    def drain(self) -> None:
        """Refuses every call from now on."""
        self._draining = True

    async def wait_idle(self, timeout: float) -> bool:
        """Whether every admitted call ended in time."""
        if self._idle.is_set():
            # Without any time to wait, asyncio would not look.
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def evict(self) -> set[asyncio.Task[object]]:
        """Ends the admitted calls; each of them sees a cancellation that `was_evicted` tells apart. Returns
        their tasks, which then tell their callers."""
        ended = set(self._calls)
        self._evicted |= ended
        for task in ended:
            task.cancel()
        return ended

    async def end_calls(self, timeout: float = TELLING_SECONDS) -> None:
        """Evicts the admitted calls, and waits until each has told its caller. A call leaves the gate before
        that, so `wait_idle` would not do."""
        ended = self.evict()
        if ended:
            await asyncio.wait(ended, timeout=timeout)

    def was_evicted(self) -> bool:
        return asyncio.current_task() in self._evicted

    def check_room(self) -> None:
        """Raises NOT_READY, DRAINING, QUEUE_FULL where not even one more sequence is let in."""
        self._opened()
        self.admission.check_room()

    @contextmanager
    def call(self) -> Iterator[Backend]:
        """Holds a place for the current task. Raises NOT_READY or DRAINING."""
        backend = self._opened()
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        self._idle.clear()
        try:
            yield backend
        finally:
            self._calls.discard(task)
            if not self._calls:
                self._idle.set()

    def _opened(self) -> Backend:
        if self._draining:
            raise draining()
        if self._backend is None:
            raise ApiError.of(Reason.NOT_READY, "the server is starting")
        return self._backend

    @contextmanager
    def claim(self, request_id: str) -> Iterator[None]:
        """Holds a request id. Raises DUPLICATE_REQUEST_ID."""
        if request_id in self._request_ids:
            raise duplicate_request_id(request_id)
        self._request_ids.add(request_id)
        try:
            yield
        finally:
            self._request_ids.discard(request_id)


def draining() -> ApiError:
    return ApiError.of(Reason.DRAINING, "the server is shutting down")
