"""What a command says while it starts: each phase with its time, and on a terminal a line that is alive.

Needs nothing heavy: it speaks while the others load.
"""

import io
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from coordinator.commands import amounts

# A message, and fields of it: of a phase its name, the one before, and the seconds that one took.
Say = Callable[[str, dict[str, object]], None]
TICK_SECONDS = 0.2
# So often a log hears how far a phase is.
SAID_SECONDS = 10.0
_CLEAR_LINE = "\r\x1b[K"


class StartReport:
    """A context manager around a start; call it with the name of each phase. Leaves no living line behind."""

    def __init__(self, stream: TextIO, tick: float = TICK_SECONDS) -> None:
        self._stream = stream
        self._tick = tick
        self._is_alive = stream.isatty()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._say: Say | None = None
        self._unsaid: list[tuple[str, dict[str, object]]] = []
        self._phase = ""
        self._started = self._since = self._said = time.monotonic()
        # Bytes that the phase has done, of all, and since when.
        self._progress: tuple[int, int, float] | None = None
        self._ticker: threading.Thread | None = None
        self._above: TextIO = _Above(self._write_above)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def say_with(self, say: Say) -> None:
        """How phases are told, also those that were over before it was known."""
        with self._lock:
            self._say = say
            unsaid, self._unsaid = self._unsaid, []
        self._lead_log(self._stream, self._above)
        for message, fields in unsaid:
            say(message, fields)

    def __call__(self, phase: str) -> None:
        """The phase before is over, and this one begins."""
        with self._lock:
            before, seconds = self._next(phase)
        fields: dict[str, object] = {"phase": phase}
        took = ""
        if before:
            fields |= {"before": before, "seconds": round(seconds, 3)}
            took = f" ({before}: {seconds:.2f} s)"
        self._tell(f"starting {phase}{took}", fields)
        self._show()

    def progress(self, done: int, total: int) -> None:
        """How far the phase is, in bytes; the living line shows it. Any thread."""
        now = time.monotonic()
        with self._lock:
            began = now if self._progress is None else self._progress[2]
            self._progress = done, total, began
            is_due = now - self._said >= SAID_SECONDS and self._say is not None
            if is_due:
                self._said = now
        if is_due:
            text = amounts.progress(done, total, now - began)
            self._tell(f"{self._phase}: {text}", {"phase": self._phase, "done": done, "total": total})

    def done(self) -> None:
        """All phases are over, and it was a start."""
        with self._lock:
            before, seconds = self._next("")
        total = time.monotonic() - self._started
        self.end()
        fields: dict[str, object] = {"before": before, "seconds": round(seconds, 3), "total": round(total, 3)}
        self._tell(f"started in {total:.2f} s ({before}: {seconds:.2f} s)", fields)

    def end(self) -> None:
        """Takes the living line away; nothing more is shown."""
        self._over.set()
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None
        self._clear()
        self._is_alive = False
        self._lead_log(self._above, self._stream)

    def _next(self, phase: str) -> tuple[str, float]:
        now = time.monotonic()
        before, seconds = self._phase, now - self._since
        self._phase, self._since, self._said = phase, now, now
        self._progress = None
        return before, seconds

    def _tell(self, message: str, fields: dict[str, object]) -> None:
        if self._say is None:
            self._unsaid.append((message, fields))
        else:
            self._clear()
            self._say(message, fields)

    def _show(self) -> None:
        if not self._is_alive:
            return
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._keep_alive, name="start-report", daemon=True)
            self._ticker.start()
        self._draw()

    def _keep_alive(self) -> None:
        while not self._over.wait(self._tick):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            if self._phase:
                now = time.monotonic()
                text = f"starting {self._phase} ... {now - self._since:.0f} s"
                if self._progress is not None:
                    done, total, began = self._progress
                    text += f", {amounts.progress(done, total, now - began)}"
                self._write(f"{_CLEAR_LINE}{text[: _width(self._stream) - 1]}")

    def _lead_log(self, source: TextIO, target: TextIO) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is source:
                handler.setStream(target)

    def _clear(self) -> None:
        if self._is_alive:
            with self._lock:
                self._write(_CLEAR_LINE)

    def _write_above(self, text: str) -> None:
        """Takes the place of the living line, which comes again below; nothing is drawn in between."""
        with self._lock:
            self._clear()
            self._stream.write(text)
            self._stream.flush()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal is gone; a start goes on without it.
            self._is_alive = False


class _Above(io.StringIO):
    """For the log, whose lines are written whole."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def write(self, text: str) -> int:
        self._write(text)
        return len(text)


def plainly(stream: TextIO) -> Say:
    """For commands that have no log."""

    def say(message: str, fields: dict[str, object]) -> None:
        stream.write(f"{message}\n")
        stream.flush()

    return say


def to_log(logger: logging.Logger) -> Say:
    """For commands whose standard error is a log, in its own format."""

    def say(message: str, fields: dict[str, object]) -> None:
        logger.info("%s", message, extra={"fields": fields})

    return say


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
