"""What long commands show: one line that counts on a terminal, and a summary at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, TextColumn

from coordinator.commands.amounts import format_bytes, progress
from moe_model.checkpoint.reader import Checkpoint


@contextmanager
def progress_line(stream: TextIO, verb: str, what: str = "file") -> Iterator[Callable[[int, int], None]]:
    """Yields what takes how many files, or what `what` names, are done, and how many there are. Shows nothing
    where the stream is no terminal, and leaves no line behind."""
    with _line(stream, verb, what + " {task.completed} of {task.total}") as update:
        yield lambda num_done, num_all: update(completed=num_done, total=num_all)


@contextmanager
def bytes_line(stream: TextIO, verb: str) -> Iterator[Callable[[int, int], None]]:
    """As `progress_line`, of bytes: with their rate, and how long the rest will take."""
    started = time.monotonic()
    with _line(stream, verb, "{task.fields[far]}") as update:

        def tell(done: int, total: int) -> None:
            update(far=progress(done, total, time.monotonic() - started))

        yield tell


@contextmanager
def _line(stream: TextIO, verb: str, text: str) -> Iterator[Callable[..., None]]:
    column = TextColumn(f"{{task.description}}: {text}", markup=False)
    is_shown = stream.isatty()
    with Progress(
        column,
        console=Console(file=stream),
        transient=True,
        disable=not is_shown,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as shown:
        task = shown.add_task(verb, visible=False, total=None, far="")
        yield lambda **changes: shown.update(task, visible=True, **changes)


def summary(dest: str, started: float) -> str:
    """Files, bytes and seconds of a checkpoint that was just written."""
    files = Checkpoint.open(dest).files
    seconds = time.monotonic() - started
    num_bytes = sum(entry.size for entry in files.values())
    return f"{len(files)} files, {format_bytes(num_bytes)}, {seconds:.1f} s -> {dest}"
