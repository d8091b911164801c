"""expertmesh scale: more or fewer expert workers for a running server, while it serves."""

import argparse
import sys

from expertmesh.commands.connection import connection
from expertmesh.commands.options import options_of
from expertmesh.commands.scale_arguments import ScaleArguments
from expertmesh.control import ControlClient


def run(args: argparse.Namespace) -> int:
    """Raises ClientError."""
    given = options_of(args, ScaleArguments)
    sys.stderr.write(f"waiting for {given.workers} workers; requests go on meanwhile\n")
    with ControlClient(given.address, connection=connection(given.connection)) as control:
        done = control.scale(given.workers, timeout=given.timeout)
    sys.stdout.write(
        f"{done.num_workers_before} -> {done.num_workers} workers, {done.modules_moved} experts loaded, "
        f"{done.seconds:.1f} s\n"
    )
    return 0
