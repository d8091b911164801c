"""The arguments of `expertmesh sweep`."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option, add_options
from expertmesh.commands.values import positive
from expertmesh.errors import ConfigError

# The first word, where it is no file; a file of this name is given as ./report.
REPORT, COMPARE, EXPORT = "report", "compare", "export"
# How many folders follow it.
_NUM_FOLDERS = {REPORT: 1, COMPARE: 2, EXPORT: 1}
FORMS = ("llm-d", "vllm")


@dataclass(frozen=True, slots=True)
class SweepArguments:
    """Which experiment, and how it is run; or what is done with results of one."""

    file: Annotated[
        str | None,
        Option("FILE", help="experiment (YAML), or a parameter file of `vllm bench sweep` (JSON)"),
    ] = None
    first: Annotated[Path | None, Option("DIR", help="results, for report, compare and export")] = None
    second: Annotated[Path | None, Option("DIR2", help="results that compare sets beside them")] = None
    out: Annotated[
        Path | None,
        Option(
            "--out",
            metavar="DIR",
            help="folder of the results (default: sweep-NAME); of export: folder of the files (default: "
            "llm-d or vllm in DIR)",
        ),
    ] = None
    resume: Annotated[bool, Option("--resume", help="go on with a run that was ended or killed")] = False
    dry_run: Annotated[bool, Option("--dry-run", help="show the cells and about how long they take")] = False
    rounds: Annotated[
        int | None,
        Option("--rounds", parse=positive, metavar="N", help="how often each cell runs (the experiment's)"),
    ] = None
    only: Annotated[
        tuple[str, ...],
        Option("--only", metavar="KEY|TEXT", help="cells with this key, or this in their line; repeatable"),
    ] = ()
    load: Annotated[
        str | None, Option("--load", metavar="TOOL", help="what sends the load of all cells (the cells')")
    ] = None
    ray_address: Annotated[
        str | None,
        Option("--ray-address", metavar="HOST:PORT", help="of a Ray cluster on which all cells run"),
    ] = None
    model: Annotated[
        str | None, Option("--model", metavar="MODEL", help="of all cells (the experiment's)")
    ] = None
    serve_params: Annotated[
        Path | None,
        Option("--serve-params", metavar="FILE", help="JSON, as of `vllm bench sweep`: servers to compare"),
    ] = None
    bench_params: Annotated[
        Path | None,
        Option("--bench-params", metavar="FILE", help="JSON, as of `vllm bench sweep`: loads to compare"),
    ] = None
    cache: Annotated[
        Path | None,
        Option("--cache", metavar="DIR", help="where random models are kept (below EXPERTMESH_CACHE)"),
    ] = None
    between_runs: Annotated[
        bool,
        Option("--between-runs", help="of compare: how many medians of DIR2 are within DIR's intervals"),
    ] = False
    to: Annotated[str | None, Option("--to", choices=FORMS, help="of export: whose form of results")] = None

    def __post_init__(self) -> None:
        given = [folder for folder in (self.first, self.second) if folder is not None]
        num = _NUM_FOLDERS.get(self.file or "", 0)
        if len(given) != num:
            raise ConfigError(
                f"{self.file} needs {num} folder{'s' if num > 1 else ''}"
                if num > len(given)
                else f"unexpected argument {str(given[num])!r}"
            )
        if (self.to is not None) != (self.file == EXPORT):
            raise ConfigError("export needs --to" if self.to is None else "--to is of export")
        if self.between_runs and self.file != COMPARE:
            raise ConfigError("--between-runs is of compare")
        if num:
            self._refuse_others()
        if self.file is None and self.serve_params is None and self.bench_params is None:
            raise ConfigError("an experiment's FILE is missing")

    def _refuse_others(self) -> None:
        """With results nothing is run: what says how is not for them."""
        kept = {"file", "first", "second", "to", "between_runs"} | ({"out"} if self.file == EXPORT else set())
        for each in fields(self):
            if each.name not in kept and getattr(self, each.name) != each.default:
                raise ConfigError(f"{self.file} has no --{each.name.replace('_', '-')}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "with results, in the place of FILE:\n"
        "  report DIR                      write DIR's tables and report.html again\n"
        "  compare DIR DIR2                set two runs side by side, cell by cell\n"
        "  export DIR --to llm-d|vllm      write results in another system's form\n"
        "\nThe exit code is 1 when a cell has no result, a prediction misses by more than its bound, or cells"
        "\nthat must give the same tokens did not; of compare --between-runs when too little is reproduced,"
        "\nand 2 when the rounds of DIR are too few to say."
    )
    add_options(parser, SweepArguments)
