"""What a sweep shows while it runs: a line that counts on a terminal, else a line for each run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from scaling.cell import Cell
from scaling.observation import Observation
from scaling.sweep.estimate import PASS, Remaining, said
from scaling.sweep.rounds import Heard, Turn


@contextmanager
def shown(
    stream: TextIO, turns: Sequence[Turn], cells: dict[str, Cell], num_passes: int = 0
) -> Iterator[Heard]:
    """What tells of the turns as they go, and of so many passes of the probe between them."""
    total = sum(len(turn.cells) for turn in turns)
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}", markup=False))
    is_terminal = stream.isatty()
    with Progress(*columns, console=Console(file=stream), transient=True, disable=not is_terminal) as line:
        teller = _Teller(line, stream, cells, total, Remaining(turns, num_passes))
        yield Heard(teller.turn, teller.cell, teller.done, teller.probing)


class _Teller:
    def __init__(
        self, line: Progress, stream: TextIO, cells: dict[str, Cell], total: int, remaining: Remaining
    ) -> None:
        self._line, self._stream, self._cells, self._total = line, stream, cells, total
        self._task = line.add_task("", total=total)
        self._remaining = remaining
        self._num_done = 0

    def turn(self, turn: Turn) -> None:
        self._remaining.turn(turn)
        self._describe(f"round {turn.number + 1}: starting, {turn.cells[0].label}")

    def cell(self, cell: Cell, number: int) -> None:
        self._remaining.load(cell)
        self._describe(f"round {number + 1}: {cell.label}")

    def probing(self, number: int) -> None:
        self._remaining.probing()
        text = f"round {number + 1}: first the probe, about {said(PASS)}"
        self._describe(text)
        if not self._line.console.is_terminal:
            print(text, file=self._stream, flush=True)

    def done(self, observation: Observation) -> None:
        self._num_done += 1
        self._remaining.done(observation.cell)
        self._line.advance(self._task)
        label = self._cells[observation.cell].label
        if observation.failed is not None:
            what = f"FAILED: {observation.failed}"
        else:
            gap = f", gap {observation.gap_ms.median:.1f} ms" if observation.gap_ms else ""
            what = f"{observation.tokens_per_s:.1f} tokens/s{gap}"
        left = "" if self._line.console.is_terminal else f"  (about {said(self._remaining.seconds)} left)"
        text = f"[{self._num_done}/{self._total}] round {observation.round + 1}  {label}: {what}{left}"
        if self._line.console.is_terminal:
            self._line.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _describe(self, text: str) -> None:
        self._line.update(self._task, description=f"{said(self._remaining.seconds)} left; {text}")
