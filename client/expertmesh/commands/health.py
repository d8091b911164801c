"""expertmesh health: whether a server can serve, as an exit code, for containers and scripts."""

import argparse
import sys

from expertmesh.client import Client
from expertmesh.commands.connection import connection
from expertmesh.commands.health_arguments import HealthArguments
from expertmesh.commands.options import options_of


def run(args: argparse.Namespace) -> int:
    """Raises ClientError where it cannot within the time."""
    given = options_of(args, HealthArguments)
    with Client(given.address, connection=connection(given.connection)) as client:
        client.wait_ready(given.timeout)
    sys.stdout.write("ready\n")
    return 0
