"""How a benchmark ends: one JSON line for machines and, on request, two files to keep.

    parser = argparse.ArgumentParser(...)
    add_out_argument(parser)
    args = parser.parse_args(argv)
    with reporting("engine", args.out, argv) as report:
        print(...)                       # for people, as ever
        report.finish({"rates": ...})    # prints the JSON line

DIR/<date>-<name>.json has the result and where it was measured, DIR/<date>-<name>.txt what was printed.
"""

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TextIO

from benchmarks.arguments import add_out_argument as add_out_argument
from benchmarks.manifest import manifest, threads
from moe_model.machine import usable_cores


class Report:
    """Of one run. `text` is what has been printed."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.manifest = manifest(f"benchmarks.{name.partition('.')[0]}", arguments)
        self.text = io.StringIO()
        self.result: dict[str, object] | None = None

    def finish(self, result: Mapping[str, object]) -> None:
        """Called once, at the end: prints the line for machines."""
        self.manifest["threads"] = threads()
        self.result = {"benchmark": self.name, **result}
        print(json.dumps(self.result), flush=True)

    def write(self, folder: Path) -> None:
        """The text first: where there is a .json, there is its .txt."""
        date = datetime.fromisoformat(str(self.manifest["date"]))
        stem = folder / f"{date:%Y-%m-%d-%H%M%S}-{self.name}"
        record = {"manifest": self.manifest, "result": self.result}
        # The last line is the result again.
        lines = self.text.getvalue().splitlines(keepends=True)[:-1]
        _write(stem.with_name(f"{stem.name}.txt"), "".join(lines))
        _write(stem.with_name(f"{stem.name}.json"), json.dumps(record, indent=1) + "\n")


class _Tee(io.TextIOBase):
    """Writes to two files."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._files = (first, second)

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()


@contextmanager
def reporting(name: str, out: Path | None, argv: Sequence[str] | None) -> Iterator[Report]:
    """Records what the block prints, and writes it when the block has ended well.

    `argv` is what `main` was given, `out` what `--out` was. A `name` with a dot is a scenario of the module
    before the dot.
    """
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    report = Report(name, sys.argv[1:] if argv is None else argv)
    with redirect_stdout(_Tee(sys.stdout, report.text)):
        _note_other_work()
        yield report
    assert report.result is not None, "a benchmark ends with finish()"
    if out is not None:
        report.write(out)


def _note_other_work() -> None:
    busy, cores = os.getloadavg()[0], usable_cores().number
    if busy > cores / 2:
        print(f"note: the load average is {busy:.1f} on {cores} cores already: other work shares them\n")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
