"""expertmesh simulate: what a model would do on machines that need not be there."""

import argparse

from coordinator.commands.scaling_room import run_command


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    return run_command("simulate", args)
