"""The arguments of `expertmesh health`."""

import argparse
from dataclasses import dataclass, field
from typing import Annotated

from expertmesh.commands.connection_arguments import ConnectionArguments
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import positive_seconds


@dataclass(frozen=True, slots=True)
class HealthArguments:
    """Which server, and how long it may take to be ready."""

    address: Annotated[str, Option("HOST:PORT", help="gRPC address of the server (%(default)s)")] = (
        "127.0.0.1:50051"
    )
    timeout: Annotated[
        float,
        Option(
            "--timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds to wait until it is ready (%(default)g)",
        ),
    ] = 3.0
    connection: Annotated[ConnectionArguments, Group("connection")] = field(
        default_factory=ConnectionArguments
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, HealthArguments)
