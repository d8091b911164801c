"""The arguments of `expertmesh sums`."""

import argparse
from dataclasses import dataclass
from typing import Annotated

from expertmesh.commands.options import Option, add_options


@dataclass(frozen=True, slots=True)
class SumsArguments:
    """Which folder."""

    folder: Annotated[str, Option("FOLDER", help="a Hugging Face folder, as it is before it is uploaded")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, SumsArguments)
