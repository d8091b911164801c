"""`expertmesh sweep`."""

import argparse
import signal
import sys
from pathlib import Path

from coordinator.commands.sweep_arguments import COMPARE, EXPORT, REPORT, SweepArguments
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.remote.settings import cache_of
from scaling.cell import Cell
from scaling.commands.sweep_end import conclude
from scaling.commands.sweep_progress import shown
from scaling.hosts import left_over
from scaling.results.commands import compare, export, report
from scaling.store import Results
from scaling.sweep.after import check_machines
from scaling.sweep.calibration import MEASURED, passes_left
from scaling.sweep.estimate import PASS, said, turn_seconds
from scaling.sweep.experiment import Plan
from scaling.sweep.given import chosen, given_plan, missing
from scaling.sweep.manifest import begun
from scaling.sweep.rounds import Rounds, Turn, done_of, turns
from scaling.sweep.topologies import opened

_MODELS = "random-models"


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    given = options_of(args, SweepArguments)
    if given.file in (REPORT, COMPARE, EXPORT):
        return _with_results(given)
    plan = given_plan(given)
    cells = chosen(plan.cells, given.only)
    num_rounds = given.rounds or plan.experiment.rounds
    if given.dry_run:
        return _show_cells(plan, cells, num_rounds)
    missing(cells.values(), plan.base, given.ray_address)
    check_machines(plan)
    folder = given.out or Path(f"sweep-{plan.experiment.name}")
    results = begun(folder, plan, num_rounds, is_resumed=given.resume)
    left = list(turns(cells, num_rounds, plan.experiment.seed, done_of(results.observations)))
    cache = given.cache or cache_of().path / _MODELS
    with sigterm_exits(also=(signal.SIGHUP,)):
        left_over.sweep()
        try:
            _run(plan, results, left, cache, given.ray_address)
        except (KeyboardInterrupt, SystemExit):
            print(f"ended; the same with `--out {folder} --resume` goes on", file=sys.stderr)
            raise
    return conclude(plan, results, cells)


def _with_results(given: SweepArguments) -> int:
    assert given.first is not None
    if given.file == REPORT:
        return report(given.first)
    if given.file == EXPORT:
        assert given.to is not None
        return export(given.first, given.to, given.out)
    assert given.second is not None
    return compare(given.first, given.second, given.between_runs)


def _run(plan: Plan, results: Results, left: list[Turn], cache: Path, ray_address: str | None) -> None:
    rounds = [*(turn.number for turn in left), results.manifest.num_rounds]
    num_passes = passes_left(plan, results.folder, rounds)
    with opened(ray_address) as topologies, shown(sys.stderr, left, plan.cells, num_passes) as heard:
        Rounds(plan, results, topologies, cache, heard).run(left)


def _show_cells(plan: Plan, cells: dict[str, Cell], num_rounds: int) -> int:
    for key, cell in cells.items():
        print(f"{key}  {cell.label}")
    seconds = sum(map(turn_seconds, turns(cells, num_rounds, plan.experiment.seed, set())))
    if plan.experiment.machines == MEASURED:
        seconds += (num_rounds + 1) * PASS
    print(f"{len(cells)} cells x {num_rounds} rounds, about {said(seconds)} (a guess, for a small model)")
    return 0
