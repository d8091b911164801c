"""The arguments of `expertmesh client`."""

import argparse
from dataclasses import dataclass, field
from typing import Annotated

from expertmesh.commands.connection_arguments import ConnectionArguments
from expertmesh.commands.generation_arguments import GenerationArguments, PromptArguments
from expertmesh.commands.options import Group, Option, add_options

MAX_TIMEOUT = 86400.0


def timeout_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not in (0, {MAX_TIMEOUT:g}] seconds")
    return value


@dataclass(frozen=True, slots=True)
class ClientArguments:
    """One generation of a server."""

    address: Annotated[str, Option("HOST:PORT", help="gRPC address of the server")]
    prompt: Annotated[PromptArguments, Group()]
    generation: Annotated[GenerationArguments, Group()]
    connection: Annotated[ConnectionArguments, Group("connection")] = field(
        default_factory=ConnectionArguments
    )
    model: Annotated[
        str | None, Option("--model", metavar="NAME", help="served model (default: the server's own)")
    ] = None
    timeout: Annotated[
        float,
        Option(
            "--timeout", parse=timeout_seconds, metavar="S", help="seconds for the whole call (%(default)g)"
        ),
    ] = 300.0
    json: Annotated[
        bool, Option("--json", help="print one JSON object, with token ids, instead of a stream of text")
    ] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ClientArguments)
