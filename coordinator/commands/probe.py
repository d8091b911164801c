"""`expertmesh probe`: measures machines and the network between them."""

import argparse

from coordinator.commands.scaling_room import run_command


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    return run_command("probe", args)
