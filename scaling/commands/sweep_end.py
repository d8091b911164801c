"""What a sweep says at its end: each cell's medians beside what was predicted, and what is wrong."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from scaling.cell import Cell
from scaling.results.checks import misses
from scaling.results.summary import CellSummary, Estimate, summarise
from scaling.store import Results
from scaling.sweep.after import finish
from scaling.sweep.agreement import different_tokens
from scaling.sweep.experiment import Plan

# Of a table that goes to no terminal.
_WIDTH = 180


def conclude(plan: Plan, results: Results, cells: Mapping[str, Cell]) -> int:
    """Predicts, writes tables and report, prints the cells that were meant. The exit code: 1 where one of
    these has no result, or tokens or predictions are not as they must be. Raises ConfigError, OSError."""
    finished = finish(plan, results)
    found = [summary for summary in summarise(results) if summary.key in cells]
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH).print(table(found))
    print(finished.report)
    problems = [*empty(found), *finished.problems, *different_tokens(results), *misses(results)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def empty(found: Sequence[CellSummary]) -> list[str]:
    """A sentence for each cell that never ran."""
    return [
        f"no result: {each.cell.label} ({each.key}): {_reason(each)}" for each in found if not each.num_rounds
    ]


def _reason(summary: CellSummary) -> str:
    return summary.failures[max(summary.failures)] if summary.failures else "it has not run"


def table(found: Sequence[CellSummary]) -> Table:
    """Tokens a second with the interval of the median, the median gap, predictions and their errors."""
    made = Table(box=None, pad_edge=False)
    for name in ("key", "cell"):
        made.add_column(name)
    for name in ("rounds", "tokens/s", "interval", "predicted", "error", "gap ms", "predicted", "error"):
        made.add_column(name, justify="right", no_wrap=True)
    for each in found:
        rate = each.estimates.get("tokens_per_s")
        made.add_row(
            *(each.key, each.cell.label, str(each.num_rounds)),
            *(_number(each.median("tokens_per_s"), 1), _interval(rate), *_beside(each, "tokens_per_s", 1)),
            *(_number(each.median("gap_ms"), 2), *_beside(each, "gap_ms", 2)),
        )
    return made


def _beside(summary: CellSummary, name: str, digits: int) -> tuple[str, str]:
    predicted, error = summary.predicted(name), summary.error(name)
    return (
        _number(None if predicted is None else predicted.value, digits),
        "-" if error is None else f"{100 * error:+.1f} %",
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.interval is None:
        return "-"
    return f"{estimate.interval.low:.1f} to {estimate.interval.high:.1f}"
