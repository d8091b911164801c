"""The arguments of `expertmesh demo`."""

import argparse
import logging
import sys
from dataclasses import dataclass, field
from typing import Annotated

from coordinator.commands.start_report import Say, plainly
from coordinator.config.engine import EngineConfig
from coordinator.config.serve import CHECKPOINT, TWO_WORKERS
from coordinator.config.workers import WorkersConfig
from expertmesh.commands.options import Group, Option, add_options


@dataclass(frozen=True, slots=True)
class DemoArguments:
    """What one generation is of, and what computes it."""

    checkpoint: Annotated[str, CHECKPOINT]
    prompt: Annotated[str, Option("--prompt", metavar="TEXT", help="text to continue")]
    max_tokens: Annotated[
        int, Option("--max-tokens", metavar="N", help="tokens to generate (%(default)s)")
    ] = 120
    seed: Annotated[int, Option("--seed", metavar="S", help="of the random numbers (%(default)s)")] = 7
    workers: Annotated[WorkersConfig, Group("expert workers")] = TWO_WORKERS
    engine: Annotated[EngineConfig, Group("engine")] = field(default_factory=EngineConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, DemoArguments)


def say_with(args: argparse.Namespace) -> Say:
    logging.basicConfig(level=logging.WARNING)
    return plainly(sys.stderr)
