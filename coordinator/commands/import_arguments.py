"""The arguments of `expertmesh import`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from coordinator.commands.init_arguments import DEST, FORCE
from expertmesh.commands.options import Option, add_options
from moe_model.names import DtypeName


@dataclass(frozen=True, slots=True)
class ImportArguments:
    """What is read, and what its files do not say."""

    source: Annotated[
        str,
        Option(
            "SOURCE",
            help="an assembled .pt or .safetensors file, an output folder with such a file or with parts, a "
            "Hugging Face folder, or a model's name on the hub or URL",
        ),
    ]
    dest: Annotated[str, DEST]
    router: Annotated[
        str | None,
        Option(
            "--router",
            metavar="uniform|kaiming|FILE",
            help="for a folder of parts, which has no router: zeros, random, or weights or centroids from a "
            "file",
        ),
    ] = None
    config: Annotated[
        Path | None,
        Option(
            "--config",
            metavar="FILE",
            help="the configuration (yaml or json) of a source that has none in or beside it",
        ),
    ] = None
    dtype: Annotated[
        DtypeName | None,
        Option("--dtype", help="default: float32, or bfloat16 if that is what the source has"),
    ] = None
    seed: Annotated[int, Option("--seed", help="of --router kaiming (default: %(default)s)")] = 0
    force: Annotated[bool, FORCE] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ImportArguments)
