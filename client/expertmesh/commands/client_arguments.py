"""The arguments of `expertmesh client`."""

import argparse

from expertmesh.commands.connection_arguments import add_connection_arguments
from expertmesh.commands.generation_arguments import add_generation_arguments

MAX_TIMEOUT = 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="gRPC address of the server")
    add_generation_arguments(parser)
    add_connection_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="served model (default: the server's own)")
    parser.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="S", help="seconds for the whole call (300)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, with token ids, instead of a stream of text",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not in (0, {MAX_TIMEOUT:g}] seconds")
    return value
