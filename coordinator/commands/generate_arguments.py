"""The arguments of `expertmesh generate`."""

import argparse
import sys
from dataclasses import dataclass, field
from typing import Annotated

from coordinator.commands.start_report import Say, plainly
from coordinator.config.engine import EngineConfig
from coordinator.config.serve import CHECKPOINT
from coordinator.config.workers import WorkersConfig
from expertmesh.commands.generation_arguments import GenerationArguments, PromptArguments
from expertmesh.commands.options import Group, Option, add_options


@dataclass(frozen=True, slots=True)
class GenerateArguments:
    """What generates, and how it is shown."""

    checkpoint: Annotated[str, CHECKPOINT]
    prompt: Annotated[PromptArguments, Group()]
    generation: Annotated[GenerationArguments, Group()]
    json: Annotated[bool, Option("--json", help="print one JSON object with token ids and timings")] = False
    engine: Annotated[EngineConfig, Group("engine")] = field(default_factory=EngineConfig)
    workers: Annotated[WorkersConfig, Group("expert workers")] = field(default_factory=WorkersConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, GenerateArguments)


def say_with(args: argparse.Namespace) -> Say | None:
    """What reads a pipe or a file wants a text, and an error of one line."""
    return plainly(sys.stderr) if args.workers and sys.stderr.isatty() else None
