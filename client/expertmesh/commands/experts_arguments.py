"""The arguments of `expertmesh experts`, one set for each action."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from expertmesh.commands.connection_arguments import CONTROL_ADDRESS, ConnectionArguments
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import index

_EXPERT = Option("EXPERT", parse=index, help="expert id")
_FILE = Option("FILE", help="safetensors file with the module, on the server's machine and on the workers'")
_SHA256 = Option("--sha256", metavar="HEX", help="refuse a file that has another SHA-256")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListExperts:
    """Which server is meant."""

    address: Annotated[str, CONTROL_ADDRESS]
    connection: Annotated[ConnectionArguments, Group("connection")] = field(
        default_factory=ConnectionArguments
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfLayer(ListExperts):
    layer: Annotated[int, Option("LAYER", parse=index, help="layer, from 0")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceExpert(_OfLayer):
    """Which expert, and its next version."""

    expert: Annotated[int, _EXPERT]
    file: Annotated[Path, _FILE]
    sha256: Annotated[str | None, _SHA256] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddExpert(_OfLayer):
    """A new expert, and its row of the router."""

    file: Annotated[Path, _FILE]
    router_file: Annotated[
        Path,
        Option("ROUTER_FILE", help="safetensors file with `router.weight`, the expert's row of the router"),
    ]
    sha256: Annotated[str | None, _SHA256] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveExpert(_OfLayer):
    """Which expert."""

    expert: Annotated[int, _EXPERT]


ACTIONS: dict[str, tuple[type[ListExperts], str]] = {
    "list": (ListExperts, "show the modules in use"),
    "replace": (ReplaceExpert, "exchange an expert for another version"),
    "add": (AddExpert, "add an expert to a layer"),
    "remove": (RemoveExpert, "retire an expert of a layer"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (arguments, text) in ACTIONS.items():
        add_options(actions.add_parser(name, help=text, description=text), arguments)
