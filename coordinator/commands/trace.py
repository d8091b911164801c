"""expertmesh trace: what a recording of `serve --record-routing` says of load, and other forms of it."""

import argparse

from coordinator.commands.scaling_room import run_command


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    return run_command("trace", args)
