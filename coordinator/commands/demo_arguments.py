"""The arguments of `expertmesh demo`."""

import argparse
import logging
import sys
from pathlib import Path

from coordinator.commands.engine_arguments import (
    add_engine_arguments,
    add_insecure_argument,
    add_worker_arguments,
)
from coordinator.commands.start_report import Say, plainly


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    parser.add_argument("--max-tokens", type=int, default=120, metavar="N", help="tokens to generate (120)")
    parser.add_argument("--seed", type=int, default=7, metavar="S", help="of the random numbers (7)")
    add_worker_arguments(parser, default_workers=2)
    add_insecure_argument(parser)
    add_engine_arguments(parser)


def say_with(args: argparse.Namespace) -> Say:
    logging.basicConfig(level=logging.WARNING)
    return plainly(sys.stderr)
