"""What this process opens and imports, told by the interpreter itself."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_heard: list[tuple[str, str]] | None = None


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """("open", path) and ("import", name), in order, until the block ends. A path is told before it opens."""
    global _heard
    _listen()
    heard: list[tuple[str, str]] = []
    _heard = heard
    try:
        yield heard
    finally:
        _heard = None


@cache
def _listen() -> None:
    """Once: there is no way to take an audit hook back."""
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if (
        _heard is not None
        and event in ("open", "import")
        and isinstance(arguments[0], str | bytes | os.PathLike)
    ):
        _heard.append((event, os.fsdecode(arguments[0])))
