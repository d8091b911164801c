"""SIGTERM, SIGINT and SIGHUP for commands that may start Ray: taken by a thread of ours, and by no handler.

Ray's library puts a handler of its own before Python's: it writes a stack trace and, 3 s later, aborts the
process. So the signals are blocked in every thread, and one of ours waits for them.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Heard = Callable[[signal.Signals], object]


class StopSignals:
    """Takes the signals for a whole process. Begin before there are other threads: they inherit the mask."""

    def __init__(self) -> None:
        self._numbers = {signal.SIGTERM, signal.SIGINT}
        # A command under nohup is to outlive its terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._numbers.add(signal.SIGHUP)
        self._listener: Heard | None = None
        self._is_over = False
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        self._thread = threading.Thread(target=self._take, name="stop-signals", daemon=True)
        self._thread.start()

    @contextmanager
    def heard_by(self, listener: Heard) -> Iterator[None]:
        """While it lasts, `listener` is told of each signal, on a thread of its own. Before it nothing has
        been started and after it nothing runs any more: there a signal ends the process at once."""
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None

    def close(self) -> None:
        """Gives the signals back; for tests, whose process goes on."""
        self._is_over = True
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGTERM)
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def _take(self) -> None:
        while True:
            number = signal.sigwait(self._numbers)
            listener = self._listener
            if self._is_over:
                return
            if listener is None:
                os._exit(128 + number)
            listener(signal.Signals(number))


_taken: ContextVar[StopSignals] = ContextVar("stop-signals")


@contextmanager
def signals_taken(*, for_good: bool) -> Iterator[None]:
    """Inside, the signals are heard by the listener of `signals_heard_by`, and by nothing else.

    `for_good`: the process ends afterwards, and whatever native handler there is by then shall not have them.
    """
    signals = StopSignals()
    token = _taken.set(signals)
    try:
        yield
    finally:
        _taken.reset(token)
        if not for_good:
            signals.close()


@contextmanager
def signals_heard_by(listener: Heard) -> Iterator[None]:
    """As StopSignals.heard_by, of the process's. Raises LookupError outside of `signals_taken`."""
    with _taken.get().heard_by(listener):
        yield
