"""The arguments of `expertmesh init`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option, add_options
from moe_model.names import DtypeName

DEST = Option("DEST", help="the new checkpoint's folder")
FORCE = Option("--force", help="replace a checkpoint at DEST")


@dataclass(frozen=True, slots=True)
class InitArguments:
    """The new model's sizes, and where it goes."""

    dest: Annotated[str, DEST]
    config: Annotated[
        Path | None,
        Option("--config", metavar="FILE", help="sizes (yaml or json); default: the 54.6 M parameter model"),
    ] = None
    seed: Annotated[
        int, Option("--seed", help="the same seed gives the same model (default: %(default)s)")
    ] = 0
    dtype: Annotated[DtypeName, Option("--dtype", help="of the weights (%(default)s)")] = "float32"
    force: Annotated[bool, FORCE] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, InitArguments)
