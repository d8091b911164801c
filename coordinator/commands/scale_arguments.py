"""The arguments of `expertmesh scale`."""

import argparse

from coordinator.commands.connection_arguments import add_connection_arguments
from coordinator.commands.engine_arguments import MAX_WORKERS, positive_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="address of the server's ControlService")
    parser.add_argument(
        "--workers", type=num_workers, required=True, metavar="N", help="how many there shall be"
    )
    parser.add_argument(
        "--timeout", type=positive_seconds, default=300.0, metavar="S", help="seconds to wait for them (300)"
    )
    add_connection_arguments(parser)


def num_workers(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number in [1, {MAX_WORKERS}]")
    return value
