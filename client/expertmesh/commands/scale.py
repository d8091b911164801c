"""expertmesh scale: more or fewer expert workers for a running server, while it serves."""

import argparse
import sys

from expertmesh.commands.connection import connection
from expertmesh.control import ControlClient


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
