"""The arguments of `expertmesh doctor`."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from coordinator.commands.cluster_arguments import CACHE, CLUSTER_FOLDER, FOLDER, PortArguments
from coordinator.commands.start_report import Say
from expertmesh.commands.options import Group, Option, add_options


@dataclass(frozen=True, slots=True)
class DoctorArguments:
    """What is looked at."""

    head: Annotated[
        str | None,
        Option(
            "HOST:PORT", help="where a head answers joiners: the way there, and all machines of its cluster"
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        Option("--token-file", metavar="FILE", help="a copy of the head's join.token (that of --folder)"),
    ] = None
    ports: Annotated[PortArguments, Group()] = field(default_factory=PortArguments)
    folder: Annotated[Path, FOLDER] = CLUSTER_FOLDER
    cache: Annotated[Path | None, CACHE] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, DoctorArguments)


def say_with(args: argparse.Namespace) -> Say | None:
    """Nothing: what it finds is all that it says."""
    return None
