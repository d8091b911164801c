"""The arguments of `expertmesh export`."""

import argparse
from dataclasses import dataclass
from typing import Annotated

from expertmesh.commands.options import Option, add_options
from moe_model.names import DtypeName


@dataclass(frozen=True, slots=True)
class ExportArguments:
    """Which model, and where it goes."""

    checkpoint: Annotated[
        str, Option("CHECKPOINT", help="the model's folder, its name on the hub, or its URL")
    ]
    dest: Annotated[str, Option("DEST", help="the new Hugging Face folder; nothing may be there")]
    dtype: Annotated[
        DtypeName | None, Option("--dtype", help="of the weights; default: what the checkpoint has")
    ] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ExportArguments)
