"""The arguments of `expertmesh init`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option, add_options
from expertmesh.commands.values import positive, positive_number
from expertmesh.errors import ConfigError
from moe_model.names import DtypeName

DEST = Option("DEST", help="the new checkpoint's folder")
FORCE = Option("--force", help="replace a checkpoint at DEST")


@dataclass(frozen=True, slots=True)
class InitArguments:
    """The new model's sizes, and where it goes."""

    dest: Annotated[str, DEST]
    config: Annotated[
        Path | None,
        Option(
            "--config",
            metavar="FILE",
            one_of="sizes",
            help="sizes (yaml or json); default: the 54.6 M parameter model",
        ),
    ] = None
    like: Annotated[
        str | None,
        Option(
            "--like",
            metavar="CONFIG",
            one_of="sizes",
            help="family and sizes of a Hugging Face config.json, a folder, a name on the hub, or a URL",
        ),
    ] = None
    layers: Annotated[
        int | None,
        Option("--layers", metavar="N", parse=positive, help="of --like: the first N layers only"),
    ] = None
    scale: Annotated[
        float | None,
        Option(
            "--scale",
            metavar="X",
            parse=positive_number,
            help="of --like: what all matrices are multiplied by (1, which keeps the size of what goes in)",
        ),
    ] = None
    seed: Annotated[
        int, Option("--seed", help="the same seed gives the same model (default: %(default)s)")
    ] = 0
    dtype: Annotated[DtypeName, Option("--dtype", help="of the weights (%(default)s)")] = "float32"
    force: Annotated[bool, FORCE] = False

    def __post_init__(self) -> None:
        for flag, value in (("--layers", self.layers), ("--scale", self.scale)):
            if value is not None and self.like is None:
                raise ConfigError(f"{flag} needs --like")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, InitArguments)
