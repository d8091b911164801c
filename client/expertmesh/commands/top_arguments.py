"""The arguments of `expertmesh top`."""

import argparse

from expertmesh.commands.connection_arguments import add_connection_arguments
from expertmesh.commands.values import positive, positive_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="address of the server's ControlService")
    parser.add_argument(
        "--interval", type=positive_seconds, default=1.0, metavar="S", help="seconds between two looks (1)"
    )
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--count", type=positive, metavar="N", help="end after N looks (default: q or Ctrl-C)")
    count.add_argument("--once", action="store_true", help="one look, as --count 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each look")
    add_connection_arguments(parser)
