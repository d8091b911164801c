"""What the collector of garbage shall leave alone while a server serves."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage() -> Iterator[None]:
    """What is there now stays: looking through all of it for cycles would only hold up every request."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
