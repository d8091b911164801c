"""Every bar in one table: `expertmesh bench bars`. Each row is a benchmark that can be run alone as well.

Prints the processor and who else uses it, what each row prints, and then the table: each figure, its bar, and
whether it is met. A row that fails is a line, and the others go on; the exit code then is 1.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import arguments
from benchmarks.bars import child, figure
from benchmarks.bars.figure import Figure
from benchmarks.bars.other_work import cores_in_use
from benchmarks.bars.rows import Row, chosen
from benchmarks.manifest import processor_line
from benchmarks.report import Report, reporting


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one row. `others`: cores that were in use before it began; `failure`: why there are no figures."""

    name: str
    command: str
    others: float
    figures: tuple[Figure, ...] = ()
    failure: str | None = None
    result: dict[str, object] | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "row": self.name,
            "command": self.command,
            "cores_in_use_before": self.others,
            "figures": [each.as_json() for each in self.figures],
            "failure": self.failure,
            "result": self.result,
        }


def measure(name: str, row: Row, args: argparse.Namespace, folder: Path) -> Outcome:
    """Runs it, and prints what it prints."""
    others = cores_in_use()
    command = row.arguments(quick=args.quick, beside=args.beside)
    shown = "python -m " + " ".join(row.arguments(quick=args.quick, beside=args.beside and "TREE"))
    print(f"\n{name}: {shown}; {others:.2f} cores are in use before", flush=True)
    try:
        found = child.run(command, folder / f"{name}.log", _say)
        figures = tuple(row.read(found))
    except child.RowError as error:
        print(f"  failed: {error}", flush=True)
        return Outcome(name, shown, others, failure=str(error))
    return Outcome(name, shown, others, figures, result=found)


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def run(args: argparse.Namespace, rows: Mapping[str, Row], report: Report) -> bool:
    """Whether every row has a result."""
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"{processor_line(report.manifest)}; load average before: {load}")
    if args.quick:
        print("--quick: too short to mean anything")
    with tempfile.TemporaryDirectory(prefix="expertmesh-bars-") as folder:
        outcomes = [measure(name, row, args, Path(folder)) for name, row in rows.items()]
    print("", *_table(outcomes), sep="\n")
    report.finish({"quick": args.quick, "rows": [each.as_json() for each in outcomes]})
    return all(each.failure is None for each in outcomes)


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The figures first; then what has none, and why."""
    yield from figure.lines([each for outcome in outcomes for each in outcome.figures])
    for each in outcomes:
        if each.failure is not None:
            yield f"{each.name}: no figures: {each.failure}"
        elif not each.figures:
            yield f"{each.name}: nothing to compare with: --beside takes a built tree of an older commit"


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.bars().parse_args(argv)
    with reporting("bars", args.out, argv) as report:
        is_whole = run(args, chosen(args.only), report)
    sys.exit(not is_whole)


if __name__ == "__main__":
    main()
