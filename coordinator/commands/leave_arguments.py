"""The arguments of `expertmesh leave`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from coordinator.commands.cluster_arguments import CLUSTER_FOLDER, FOLDER
from coordinator.commands.start_report import Say
from expertmesh.commands.options import Option, add_options
from expertmesh.commands.values import positive_seconds


@dataclass(frozen=True, slots=True)
class LeaveArguments:
    """Which node is left, and how long that may take."""

    folder: Annotated[Path, FOLDER] = CLUSTER_FOLDER
    ray_address: Annotated[
        str | None,
        Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="of a cluster that `expertmesh head` has not made; by default, where there is no such "
            "folder, RAY_ADDRESS, else the one on this machine",
        ),
    ] = None
    timeout: Annotated[
        float,
        Option(
            "--timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds until its workers have gone (%(default)g)",
        ),
    ] = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, LeaveArguments)


def say_with(args: argparse.Namespace) -> Say | None:
    """Nothing: it is called by others."""
    return None
