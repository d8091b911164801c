"""A thread that takes one event after the other, and threads for what waits; these end as events again."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from expert_workers.transports.base import Failure, FailureReason, WorkerFailureError
from moe_model.errors import ExpertMeshError

_log = logging.getLogger(__name__)


class EventLoop:
    """`post`, `submit` and `close` may be called from any thread."""

    def __init__(self, name: str, after: Callable[[], None], timeout: Callable[[], float]) -> None:
        """`after` is called after every event, and when none has come for `timeout()` seconds."""
        self._name = name
        self._after = after
        self._timeout = timeout
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: set[threading.Thread] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, event: Callable[[], None]) -> None:
        self._events.put(event)

    def submit(self, work: Callable[[], Any], end: Callable[[Any], None]) -> None:
        """Runs `work` on a thread of its own; `end` is posted with what it returned, or with its Failure."""
        if self._is_closed:
            return
        # Daemons: one that asks a cluster that is gone may never come back.
        thread = threading.Thread(target=self._work, args=(work, end), name=f"{self._name}-job", daemon=True)
        self._jobs.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            # There are no threads to be had. The caller that waits for the end is told all the same.
            self._jobs.discard(thread)
            self.post(partial(end, Failure(FailureReason.RAISED, str(error))))

    def close(self, timeout: float) -> bool:
        """Waits for what is going on, at most so long; whether it has ended. Idempotent."""
        self._is_closed = True
        deadline = time.monotonic() + timeout
        self._events.put(None)
        threads = [thread for thread in [self._thread, *self._jobs] if thread.ident is not None]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _work(self, work: Callable[[], Any], end: Callable[[Any], None]) -> None:
        try:
            result: Any = work()
        except WorkerFailureError as error:
            result = error.failure
        except ExpertMeshError as error:
            result = Failure(FailureReason.RAISED, str(error))
        except BaseException as error:  # noqa: BLE001 - a thread's top, and some libraries raise more
            _log.exception("a job failed")
            result = Failure(FailureReason.RAISED, f"unforeseen: {type(error).__name__}")
        self._jobs.discard(threading.current_thread())
        self.post(partial(end, result))

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._timeout())
            except queue.Empty:
                event = _nothing
            if event is None:
                return
            try:
                event()
                self._after()
            except Exception:  # noqa: BLE001 - a thread's top
                _log.exception("something unforeseen; it goes on")


def _nothing() -> None:
    """Time has passed."""
