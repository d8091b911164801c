"""The arguments of `expertmesh scale`."""

import argparse
from dataclasses import dataclass, field
from typing import Annotated

from expertmesh.commands.connection_arguments import CONTROL_ADDRESS, ConnectionArguments
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import MAX_WORKERS, positive_seconds, whole_number


@dataclass(frozen=True, slots=True)
class ScaleArguments:
    """How many workers there shall be."""

    address: Annotated[str, CONTROL_ADDRESS]
    workers: Annotated[
        int,
        Option("--workers", parse=whole_number(1, MAX_WORKERS), metavar="N", help="how many there shall be"),
    ]
    timeout: Annotated[
        float,
        Option(
            "--timeout", parse=positive_seconds, metavar="S", help="seconds to wait for them (%(default)g)"
        ),
    ] = 300.0
    connection: Annotated[ConnectionArguments, Group("connection")] = field(
        default_factory=ConnectionArguments
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ScaleArguments)
