"""The arguments of `expertmesh top`."""

import argparse
from dataclasses import dataclass, field
from typing import Annotated

from expertmesh.commands.connection_arguments import CONTROL_ADDRESS, ConnectionArguments
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import positive, positive_seconds


@dataclass(frozen=True, slots=True)
class TopArguments:
    """How often and how a server is looked at."""

    address: Annotated[str, CONTROL_ADDRESS]
    interval: Annotated[
        float,
        Option(
            "--interval", parse=positive_seconds, metavar="S", help="seconds between two looks (%(default)g)"
        ),
    ] = 1.0
    count: Annotated[
        int | None,
        Option(
            "--count",
            one_of="count",
            parse=positive,
            metavar="N",
            help="end after N looks (default: q or Ctrl-C)",
        ),
    ] = None
    once: Annotated[bool, Option("--once", one_of="count", help="one look, as --count 1")] = False
    json: Annotated[bool, Option("--json", help="print one JSON object for each look")] = False
    connection: Annotated[ConnectionArguments, Group("connection")] = field(
        default_factory=ConnectionArguments
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, TopArguments)
