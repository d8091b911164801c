"""The arguments of `expertmesh inspect`."""

import argparse
from dataclasses import dataclass
from typing import Annotated

from expertmesh.commands.options import Option, add_options


@dataclass(frozen=True, slots=True)
class InspectArguments:
    """Which checkpoint, and how closely it is looked at."""

    checkpoint: Annotated[
        str, Option("CHECKPOINT", help="the checkpoint's folder, its name on the hub, or its URL")
    ]
    verify: Annotated[
        bool,
        Option("--verify", help="read every file; check its tensors, and its SHA-256 if known"),
    ] = False
    json: Annotated[bool, Option("--json", help="print one JSON object")] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, InspectArguments)
