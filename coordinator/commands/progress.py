"""What long commands show: one line that grows on a terminal, and a summary at the end."""

import time
from types import TracebackType
from typing import Self, TextIO

from moe_model.checkpoint.reader import Checkpoint

_INTERVAL_SECONDS = 0.1
_CLEAR_LINE = "\r\x1b[K"


class ProgressLine:
    """A context manager. Writes nothing where the stream is no terminal, and leaves no line behind."""

    def __init__(self, stream: TextIO, verb: str) -> None:
        self._stream = stream
        self._verb = verb
        self._shown_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown_at is not None:
            self._write("")

    def update(self, num_done: int, num_all: int) -> None:
        now = time.monotonic()
        if not self._stream.isatty() or (self._shown_at and now - self._shown_at < _INTERVAL_SECONDS):
            return
        self._shown_at = now
        self._write(f"{self._verb}: file {num_done} of {num_all}")

    def _write(self, text: str) -> None:
        self._stream.write(_CLEAR_LINE + text)
        self._stream.flush()


def summary(dest: str, started: float) -> str:
    """Files, bytes and seconds of a checkpoint that was just written."""
    files = Checkpoint.open(dest).files
    seconds = time.monotonic() - started
    num_bytes = sum(entry.size for entry in files.values())
    return f"{len(files)} files, {format_bytes(num_bytes)}, {seconds:.1f} s -> {dest}"


def format_bytes(num_bytes: int) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
