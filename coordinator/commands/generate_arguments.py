"""The arguments of `expertmesh generate`."""

import argparse
import sys
from pathlib import Path

from coordinator.commands.engine_arguments import (
    add_engine_arguments,
    add_insecure_argument,
    add_worker_arguments,
)
from coordinator.commands.start_report import Say, plainly
from expertmesh.commands.generation_arguments import add_generation_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    add_generation_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with token ids and timings"
    )
    add_engine_arguments(parser)
    add_worker_arguments(parser, default_workers=0)
    add_insecure_argument(parser)


def say_with(args: argparse.Namespace) -> Say | None:
    """What reads a pipe or a file wants a text, and an error of one line."""
    return plainly(sys.stderr) if args.workers and sys.stderr.isatty() else None
