"""The arguments of `expertmesh scale`."""

import argparse

from expertmesh.commands.connection_arguments import add_connection_arguments
from expertmesh.commands.values import MAX_WORKERS, positive_seconds, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="address of the server's ControlService")
    parser.add_argument(
        "--workers",
        type=whole_number(1, MAX_WORKERS),
        required=True,
        metavar="N",
        help="how many there shall be",
    )
    parser.add_argument(
        "--timeout", type=positive_seconds, default=300.0, metavar="S", help="seconds to wait for them (300)"
    )
    add_connection_arguments(parser)
