"""`expertmesh sweep`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coordinator.commands.sweep_arguments import SweepArguments
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.remote.settings import cache_of
from scaling.cell import Cell
from scaling.commands.sweep_progress import shown
from scaling.store import Results
from scaling.sweep.after import finish
from scaling.sweep.estimate import said, turn_seconds
from scaling.sweep.experiment import Plan
from scaling.sweep.given import chosen, given_plan, missing
from scaling.sweep.manifest import begun
from scaling.sweep.rounds import Rounds, Turn, done_of, turns
from scaling.sweep.summary import Row, different_tokens, misses, rows
from scaling.sweep.topologies import opened

_MODELS = "random-models"


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    given = options_of(args, SweepArguments)
    plan = given_plan(given)
    cells = chosen(plan.cells, given.only)
    num_rounds = given.rounds or plan.experiment.rounds
    if given.dry_run:
        return _show_cells(plan, cells, num_rounds)
    missing(cells.values(), given.ray_address)
    folder = given.out or Path(f"sweep-{plan.experiment.name}")
    results = begun(folder, plan, num_rounds, is_resumed=given.resume)
    left = list(turns(cells, num_rounds, plan.experiment.seed, done_of(results.observations)))
    cache = given.cache or cache_of().path / _MODELS
    with sigterm_exits():
        try:
            _run(plan, results, left, cache, given.ray_address)
        except KeyboardInterrupt:
            print(f"ended; `--resume` with --out {folder} goes on", file=sys.stderr)
            raise
    return _conclude(plan, results, cells, num_rounds)


def _run(plan: Plan, results: Results, left: list[Turn], cache: Path, ray_address: str | None) -> None:
    with (
        opened(ray_address) as topologies,
        shown(sys.stderr, left, plan.cells) as heard,
    ):
        Rounds(plan, results, topologies, cache, heard).run(left)


def _show_cells(plan: Plan, cells: dict[str, Cell], num_rounds: int) -> int:
    for key, cell in cells.items():
        print(f"{key}  {cell.label}")
    seconds = sum(map(turn_seconds, turns(cells, num_rounds, plan.experiment.seed, set())))
    print(f"{len(cells)} cells x {num_rounds} rounds, about {said(seconds)} (a guess, for a small model)")
    return 0


def _conclude(plan: Plan, results: Results, cells: dict[str, Cell], num_rounds: int) -> int:
    written = finish(plan, results)
    found = rows(results, cells)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(_table(found))
    empty = [row.label for row in found if row.rate is None]
    problems = [f"no result: {label}: {_reason(results, label, cells)}" for label in empty]
    problems += misses(found, results.manifest.bounds) + different_tokens(results)
    for path in written:
        print(path)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _reason(results: Results, label: str, cells: dict[str, Cell]) -> str:
    keys = [key for key, cell in cells.items() if cell.label == label]
    said_of = [each.failed for each in results.observations if each.cell in keys and each.failed]
    return said_of[-1] if said_of else "it has not run"


def _table(found: Sequence[Row]) -> Table:
    table = Table("cell", "rounds", "tokens/s", "interval", "gap ms", "predicted", "error", box=None)
    for row in found:
        median, low, high = row.rate or (0.0, 0.0, 0.0)
        table.add_row(
            row.label,
            str(row.num),
            f"{median:.1f}" if row.rate else "-",
            f"{low:.1f} to {high:.1f}" if row.rate else "-",
            "-" if row.gap_ms is None else f"{row.gap_ms:.2f}",
            "-" if row.predicted is None else f"{row.predicted:.1f}",
            "-" if row.error is None else f"{100 * row.error:+.1f} %",
        )
    return table
