"""expertmesh sweep: runs an experiment's cells in rounds, and says what they gave."""

import argparse

from coordinator.commands.scaling_room import run_command


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError where the package is not installed, and what it raises."""
    return run_command("sweep", args)
