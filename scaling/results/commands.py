"""What `expertmesh sweep report`, `compare` and `export` do; they print and give an exit code."""

import sys
from pathlib import Path

from scaling.results.checks import misses
from scaling.results.compare import compare as compared
from scaling.results.compare import reproduced
from scaling.results.comparison_text import comparison_lines, reproduction_lines, unknown_lines
from scaling.results.export import export as exported
from scaling.results.report import write_report
from scaling.results.tables import write_tables
from scaling.store import Results


def report(folder: Path) -> int:
    """Writes tables and report of a folder of results again, also of one that is not finished. 1: a
    prediction missed by more than its bound. Raises ConfigError, OSError."""
    results = Results.open(folder)
    write_tables(results)
    print(write_report(results))
    found = misses(results)
    for sentence in found:
        print(sentence)
    return 1 if found else 0


def compare(a: Path, b: Path, between_runs: bool = False) -> int:
    """With `between_runs`: 1 where fewer of B's medians than the bar says lie within A's intervals, or no
    cell is in both; else 2 where A has no intervals. Raises ConfigError."""
    found = compared(Results.open(a), Results.open(b))
    for line in comparison_lines(found):
        print(line)
    if not between_runs:
        return 0
    by_measure = reproduced(found.rows)
    print()
    for line in reproduction_lines(by_measure):
        print(line)
    for sentence in unknown_lines(by_measure):
        print(sentence, file=sys.stderr)
    if not by_measure or any(each.met is False for each in by_measure):
        return 1
    return 0 if all(each.met for each in by_measure) else 2


def export(folder: Path, form: str, out: Path | None = None) -> int:
    """Raises ConfigError, OSError."""
    paths = exported(Results.open(folder), form, out)
    print(f"{len(paths)} files: {paths[0].parent}")
    return 0
