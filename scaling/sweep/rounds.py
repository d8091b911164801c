"""All runs of a sweep: rounds of all cells, in another order each, and what is left of them to do."""

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct

from expertmesh.errors import ExpertMeshError
from scaling.cell import Cell, Load
from scaling.observation import Observation
from scaling.store import Results
from scaling.sweep.calibration import MEASURED, has_pass, measure_pass
from scaling.sweep.experiment import Plan
from scaling.sweep.models import checkpoint_of
from scaling.sweep.one_run import Order, run_cell
from scaling.sweep.seeds import order, seed_of
from scaling.sweep.server_arguments import server_arguments
from scaling.topology import Running, Topology

LOGS = "logs"
# Of a long reason, the letters that are kept of its beginning and of its end.
_HALF = 250
_NO_LOAD = Load(concurrency=1)
# What a run may raise that is its own fault, and no reason to end the sweep.
_FAILURES = (RuntimeError, ExpertMeshError, OSError, subprocess.SubprocessError)

# Runs that are over: of which cell, in which round.
Runs = set[tuple[str, int]]


class Turn(Struct, frozen=True):
    """What is next: some cells of one round, which one server serves one after the other."""

    number: int
    cells: tuple[Cell, ...]


class Heard(Struct, frozen=True):
    """What is told of a sweep as it goes: each as it begins and as it ends; and a pass of the probe before
    round `number`."""

    turn: Callable[[Turn], None]
    cell: Callable[[Cell, int], None]
    done: Callable[[Observation], None]
    probing: Callable[[int], None] = lambda number: None


def turns(cells: Mapping[str, Cell], num_rounds: int, seed: int, done: Runs) -> Iterator[Turn]:
    """What of the rounds is not done yet, in the order that the seed gives."""
    by_server: dict[str, dict[str, Cell]] = {}
    for key, cell in cells.items():
        by_server.setdefault(server_key(cell), {})[key] = cell
    for number in range(num_rounds):
        for server in order(by_server, seed, number):
            group = by_server[server]
            left = [group[key] for key in order(group, seed, number, server) if (key, number) not in done]
            if left:
                yield Turn(number, tuple(left))


def server_key(cell: Cell) -> str:
    """Equal for cells that differ in their load only. A server that a fault was done to serves no other."""
    alone = cell if cell.fault is not None else msgspec.structs.replace(cell, load=_NO_LOAD)
    return alone.key


def workload_seed(cell: Cell, seed: int, number: int) -> int:
    """Of one cell in one round. Cells that differ only in where and how the same model runs send the same
    requests: so their tokens can be compared, and what requests make of a rate is not among what differs."""
    same = Cell(model=cell.model, load=cell.load, layers=cell.layers, skew=cell.skew)
    return seed_of(seed, same.key, number)


class Rounds:
    """Runs the turns of a plan and adds what comes of them to the results."""

    def __init__(
        self, plan: Plan, results: Results, topologies: Mapping[str, Topology], cache: Path, heard: Heard
    ) -> None:
        self._plan, self._results, self._cache, self._heard = plan, results, cache, heard
        self._topologies = topologies
        self._seed = plan.experiment.seed
        # Rounds before which the probe has run, or has failed.
        self._probed: set[int] = set()

    def run(self, found: Iterable[Turn]) -> None:
        """Returns when each has run or has a reason why not. KeyboardInterrupt and SystemExit end the server
        that runs, and leave no trace of a run that was not over."""
        for turn in found:
            self._probe(turn.number)
            self._heard.turn(turn)
            self._run(turn)
        self._probe(self._results.manifest.num_rounds)

    def _probe(self, number: int) -> None:
        """Before this round, where the experiment is predicted by that and it is not done yet."""
        folder = self._results.folder
        if self._plan.experiment.machines != MEASURED or number in self._probed:
            return
        self._probed.add(number)
        if not has_pass(folder, number):
            self._heard.probing(number)
            measure_pass(folder, number)

    def _run(self, turn: Turn) -> None:
        first, left = turn.cells[0], list(turn.cells)
        started = time.monotonic()
        log = self._log(first, turn.number)
        try:
            checkpoint = checkpoint_of(first, self._plan.base, self._cache)
            arguments = server_arguments(first, self._plan.base, self._seed)
            topology = self._topologies[first.where]
            with topology.start(first, checkpoint, arguments, log) as server:
                start_s = time.monotonic() - started
                while left:
                    self._one(server, checkpoint, left[0], turn.number, start_s)
                    left.pop(0)
                    start_s = 0.0
        except _FAILURES as error:
            for cell in left:
                self._failed(cell, turn.number, error)

    def _one(self, server: Running, checkpoint: Path, cell: Cell, number: int, start_s: float) -> None:
        self._heard.cell(cell, number)
        with TemporaryDirectory(prefix="expertmesh-sweep-") as folder:
            order = Order(
                cell=cell,
                base=self._plan.base,
                number=number,
                seed=workload_seed(cell, self._seed, number),
                warmup=self._plan.experiment.warmup,
                has_loads=number == 0 and cell.fault is None,
                seconds=self._plan.experiment.cell_seconds,
                start_s=start_s,
                folder=Path(folder),
            )
            try:
                self._add(run_cell(server, checkpoint, order))
            except _FAILURES as error:
                self._failed(cell, number, error)

    def _failed(self, cell: Cell, number: int, error: Exception) -> None:
        self._add(
            Observation(
                cell=cell.key,
                round=number,
                seed=workload_seed(cell, self._seed, number),
                started_at=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=0.0,
                failed=reason_of(error),
            )
        )

    def _add(self, observation: Observation) -> None:
        self._results.add(observation)
        self._heard.done(observation)

    def _log(self, cell: Cell, number: int) -> Path:
        folder = self._results.folder / LOGS
        folder.mkdir(exist_ok=True)
        return folder / f"{cell.key}-{number}.log"


def reason_of(error: Exception) -> str:
    """One line; of a long one the beginning and the end, where logs say what happened."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 2 * _HALF else f"{said[:_HALF]} ... {said[-_HALF:]}"


def done_of(observations: Sequence[Observation]) -> Runs:
    """Which runs need not be done again: those that failed are tried again."""
    return {(each.cell, each.round) for each in observations if each.failed is None}
