"""expertmesh scale: more or fewer expert workers for a running server, while it serves."""

import argparse
import sys

from coordinator.commands.connection_arguments import add_connection_arguments, connection
from coordinator.commands.engine_arguments import MAX_WORKERS, positive_seconds
from coordinator.control_client import ControlClient

HELP = "change the number of a server's expert workers, while it serves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="address of the server's ControlService")
    parser.add_argument(
        "--workers", type=num_workers, required=True, metavar="N", help="how many there shall be"
    )
    parser.add_argument(
        "--timeout", type=positive_seconds, default=300.0, metavar="S", help="seconds to wait for them (300)"
    )
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Raises ClientError."""
    sys.stderr.write(f"waiting for {args.workers} workers; requests go on meanwhile\n")
    with ControlClient(args.address, connection=connection(args)) as control:
        done = control.scale(args.workers, timeout=args.timeout)
    sys.stdout.write(
        f"{done.num_workers_before} -> {done.num_workers} workers, {done.modules_moved} experts loaded, "
        f"{done.seconds:.1f} s\n"
    )
    return 0


def num_workers(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number in [1, {MAX_WORKERS}]")
    return value
