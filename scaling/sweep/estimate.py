"""About how long runs take: guessed at first, then by how long those that are over took."""

import time
from collections.abc import Callable, Iterable
from statistics import median

from scaling.cell import Cell
from scaling.loads.base import num_requests
from scaling.sweep.rounds import Turn, server_key

# Seconds, of the reference machine: a server's start, each worker's, each host's in a namespace; an end; what
# a measurement has around it. A token of one sequence.
_SERVER, _WORKER, _HOST, _END, _AROUND, _TOKEN = 9.0, 2.0, 5.0, 2.0, 2.0, 0.012
# The same of a pass of the probe.
PASS = 240.0
# Of what takes longer than expected, the share of its time until now that is still expected; and the least
# that is said while a run is left, in seconds.
_MORE, _LEAST = 0.1, 1.0


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


class _Measured:
    """How long one kind of work took, by what it was done for. What was not done yet takes its guess times
    the median of how far guesses were off."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._factors: list[float] = []

    def add(self, key: str, guess: float, seconds: float) -> None:
        self._seconds.setdefault(key, []).append(seconds)
        self._factors.append(seconds / guess)

    def expected(self, key: str, guess: float, factor: float = 0.0) -> float:
        """Seconds. `factor`: what goes on and takes longer than expected, over its guess; else 0."""
        if key in self._seconds:
            return median(self._seconds[key])
        known = [*self._factors, factor] if factor else self._factors
        return guess * (median(known) if known else 1.0)


class Remaining:
    """Seconds that are left of turns, and of passes of the probe between them. It is told of each pass, turn
    and load as it begins, and of each run as it ends. What the server takes is the time of its turn that is
    no load's."""

    def __init__(
        self, turns: Iterable[Turn], num_passes: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._waiting = list(turns)
        self._servers, self._loads, self._passes = _Measured(), _Measured(), _Measured()
        self._num_passes, self._is_probing = num_passes, False
        # Of the turn that goes on: its runs that are left, and the one whose load is sent.
        self._turn: Turn | None = None
        self._left: list[Cell] = []
        self._loaded: Cell | None = None
        # When what goes on began; what the turn's server has taken before that.
        self._since, self._server_s = clock(), 0.0

    def probing(self) -> None:
        self._pause()
        self._num_passes -= 1
        self._is_probing = True

    def turn(self, turn: Turn) -> None:
        self._pause()
        if self._turn is not None:
            first = self._turn.cells[0]
            self._servers.add(server_key(first), start_seconds(first), self._server_s)
        self._waiting.remove(turn)
        self._turn, self._left, self._server_s = turn, list(turn.cells), 0.0

    def load(self, cell: Cell) -> None:
        self._pause()
        self._loaded = cell

    def done(self, key: str) -> None:
        """Also of a run that failed before it had a load."""
        seconds, cell = self._clock() - self._since, self._loaded
        if cell is not None:
            self._loads.add(cell.key, load_seconds(cell), seconds)
            self._loaded, self._since = None, self._clock()
        self._left = [each for each in self._left if each.key != key]

    @property
    def seconds(self) -> float:
        """Above 0 while a run or a pass is left."""
        if not (self._left or self._waiting or self._num_passes > 0 or self._is_probing):
            return 0.0
        factor, left = self._of_turn()
        left += max(0, self._num_passes) * self._pass
        if self._is_probing:
            left += _rest(self._pass, self._clock() - self._since)
        loads = [cell for turn in self._waiting for cell in turn.cells]
        left += sum(self._server(turn.cells[0], factor) for turn in self._waiting)
        return max(_LEAST, left + sum(map(self._load, loads)))

    def _of_turn(self) -> tuple[float, float]:
        """By what factor its server's time is above its guess, 0 where it is as expected; and seconds."""
        if self._turn is None:
            return 0.0, 0.0
        first = self._turn.cells[0]
        gone = 0.0 if self._is_probing else self._clock() - self._since
        server_s, expected = self._server_s, self._server(first)
        left = sum(self._load(cell) for cell in self._left if cell is not self._loaded)
        if self._loaded is None:
            server_s += gone
            left += _rest(expected, server_s)
        else:
            left += _rest(self._load(self._loaded), gone) + max(0.0, expected - server_s)
        return server_s / start_seconds(first) if server_s > expected else 0.0, left

    @property
    def _pass(self) -> float:
        return self._passes.expected("", PASS)

    def _server(self, cell: Cell, factor: float = 0.0) -> float:
        return self._servers.expected(server_key(cell), start_seconds(cell), factor)

    def _load(self, cell: Cell) -> float:
        return self._loads.expected(cell.key, load_seconds(cell))

    def _pause(self) -> None:
        """What is done for the server until now is counted, or for the probe."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        if self._is_probing:
            self._passes.add("", PASS, seconds)
            self._is_probing = False
        else:
            self._server_s += seconds


def _rest(expected: float, taken: float) -> float:
    """Seconds that are left of what has taken so long."""
    return max(expected - taken, _MORE * taken)


def said(seconds: float) -> str:
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 5400 else f"{whole // 3600} h {whole % 3600 // 60} min"
