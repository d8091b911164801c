"""SIGTERM, Ctrl-C and SIGHUP: a command ends what it has started and removes what it has half written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.server.stop_signals import signals_heard_by
from moe_model.errors import HaltedError
from moe_model.halt import Halt


@contextmanager
def stop_exits() -> Iterator[Halt]:
    """Yields what a signal sets. The HaltedError that comes of it becomes SystemExit(128 + its number)."""
    halt, heard = Halt(), list[signal.Signals]()

    def hear(number: signal.Signals) -> None:
        heard.append(number)
        halt.set()

    with signals_heard_by(hear):
        try:
            yield halt
        except HaltedError:
            if not heard:
                raise
            raise SystemExit(128 + heard[0]) from None
