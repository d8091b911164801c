"""expertmesh plan: what to run where, on machines as they are."""

import argparse

from coordinator.commands.scaling_room import run_command


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError where no plan can be."""
    return run_command("plan", args)
