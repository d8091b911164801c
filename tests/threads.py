"""Threads that a test must not leave behind."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0


@contextmanager
def no_thread_left() -> Iterator[None]:
    """What was started in the block has ended; one that has done its work may take a moment to be gone."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} is left"
