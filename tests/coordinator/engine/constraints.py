"""A builder of constraints that takes its time, and a constraint that allows one token."""

import threading

import numpy as np

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource


class OnlyToken:
    """Allows this token, for ever."""

    may_end = must_end = is_free = False

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def matcher(self) -> "OnlyToken":
        return OnlyToken(self._token_id)

    def fill_mask(self, mask_W: np.ndarray) -> None:
        mask_W[:] = 0
        mask_W[self._token_id // 32] = 1 << self._token_id % 32

    def advance(self, token_id: int) -> None:
        """Runners without a model draw what they like."""


class LibraryPanic(BaseException):
    """What a native library's panic is in Python: no Exception."""


class WaitingBuilder:
    """A ConstraintBuilder. Builds when it may; `ready` has been built before. A grammar is always refused, a
    JSON schema makes the library panic."""

    def __init__(self) -> None:
        self.ready: list[ConstraintSource] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()

    def take(self, source: ConstraintSource) -> OnlyToken | None:
        if source not in self.ready:
            return None
        self.ready.remove(source)
        return OnlyToken(3)

    def build(self, source: ConstraintSource) -> OnlyToken:
        self.begun.release()
        assert self.go_on.wait(30)
        if source.kind == "grammar":
            raise ConstraintError("has no start rule")
        if source.kind == "json_schema":
            raise LibraryPanic("index out of bounds")
        return OnlyToken(3)
