"""The arguments of `expertmesh trace`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from expertmesh.commands.options import Option, add_options
from expertmesh.commands.values import positive
from expertmesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TraceArguments:
    """What is done with which file."""

    action: Annotated[
        Literal["summary", "plot", "convert"],
        Option("ACTION", help="summary: load, drift, experts that go together; plot: a picture; convert"),
    ]
    file: Annotated[
        Path,
        Option("FILE", help="of `serve --record-routing`; for convert also an .npz of (tokens-1, layers, K)"),
    ]
    out: Annotated[
        Path | None,
        Option(
            "--out",
            metavar="FILE",
            help="what is written. plot: .svg, .png or .pdf; convert: .npz, .jsonl or .parquet, and of an "
            ".npz a trace, whatever its name",
        ),
    ] = None
    as_json: Annotated[bool, Option("--json", help="summary: one object of JSON")] = False
    num_experts: Annotated[
        int | None,
        Option(
            "--experts",
            parse=positive,
            metavar="E",
            help="convert of an .npz: experts of a layer (one more than the highest that is there)",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.as_json and self.action != "summary":
            raise ConfigError("--json is of summary")
        if self.out is not None and self.action == "summary":
            raise ConfigError("--out is of plot and convert: summary prints")
        if self.num_experts is not None and (self.action != "convert" or self.file.suffix != ".npz"):
            raise ConfigError("--experts is of convert, of an .npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, TraceArguments)
