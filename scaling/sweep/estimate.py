"""About how long runs take: guessed at first, then by how long those that are over took."""

from collections.abc import Iterable

from scaling.cell import Cell
from scaling.loads.base import num_requests
from scaling.sweep.rounds import Turn

# Seconds, of the reference machine: a server's start, each worker's, each host's in a namespace; an end; what
# a measurement has around it. A token of one sequence.
_SERVER, _WORKER, _HOST, _END, _AROUND, _TOKEN = 9.0, 2.0, 5.0, 2.0, 2.0, 0.012


def start_seconds(cell: Cell) -> float:
    """A guess."""
    each = _WORKER + (_HOST if cell.where == "namespaces" else 0.0)
    return _SERVER + _END + each * cell.workers


def load_seconds(cell: Cell) -> float:
    """A guess: of a small model, whose steps take longer with more sequences at once."""
    load = cell.load
    num = num_requests(load)
    if load.rate is not None:
        return _AROUND + num / load.rate
    at_once = load.concurrency or 1
    waves = -(-num // at_once)
    return _AROUND + waves * load.output_tokens * _TOKEN * (1 + at_once / 16)


def turn_seconds(turn: Turn) -> float:
    return start_seconds(turn.cells[0]) + sum(map(load_seconds, turn.cells))


class Remaining:
    """Seconds that are left: what is guessed of the rest, by how far guesses of the past were off."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        self._left = sum(map(turn_seconds, turns))
        self._guessed = self._taken = 0.0

    def done(self, turn: Turn, seconds: float) -> None:
        guess = turn_seconds(turn)
        self._left = max(0.0, self._left - guess)
        self._guessed, self._taken = self._guessed + guess, self._taken + seconds

    @property
    def seconds(self) -> float:
        return self._left * (self._taken / self._guessed if self._guessed else 1.0)


def said(seconds: float) -> str:
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 5400 else f"{whole // 3600} h {whole % 3600 // 60} min"
