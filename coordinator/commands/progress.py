"""What long commands show: one line that counts on a terminal, and a summary at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, TextColumn

from moe_model.checkpoint.reader import Checkpoint


@contextmanager
def progress_line(stream: TextIO, verb: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what takes the files that are done, and all. Shows nothing where the stream is no terminal, and
    leaves no line behind."""
    column = TextColumn("{task.description}: file {task.completed} of {task.total}", markup=False)
    is_shown = stream.isatty()
    with Progress(
        column,
        console=Console(file=stream),
        transient=True,
        disable=not is_shown,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        task = progress.add_task(verb, visible=False, total=None)
        yield lambda num_done, num_all: progress.update(task, completed=num_done, total=num_all, visible=True)


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
