"""What a start is at, told to the command that wants it: from the thread that works, each as it begins."""

from typing import Protocol


class Phases(Protocol):
    """Is called with the name of each phase; `done` when there is a start to speak of."""

    def __call__(self, phase: str) -> None: ...

    def progress(self, done: int, total: int) -> None:
        """Of the phase: bytes that are read or downloaded, and all. Any thread."""

    def done(self) -> None: ...


class Untold:
    """For a caller that does not want to know."""

    def __call__(self, phase: str) -> None:
        """Says nothing."""

    def progress(self, done: int, total: int) -> None:
        """Says nothing."""

    def done(self) -> None:
        """Says nothing."""


UNTOLD = Untold()
