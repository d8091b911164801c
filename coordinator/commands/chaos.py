"""expertmesh chaos: breaks workers of a live server under load, and says what its clients saw of it.

The package that does it is no part of the product, which therefore does not import it.
"""

import argparse
import runpy
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from expertmesh.commands.connection_arguments import ConnectionArguments
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import positive, positive_seconds
from moe_model.errors import ConfigError

MAX_SEED = 2**31
FOLDER = Path(__file__).parents[2] / "chaos"


def address(text: str) -> str:
    """HOST:PORT as it is. Raises ArgumentTypeError."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not HOST:PORT")
    return text


def seed_of(text: str) -> int:
    """Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_SEED):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not in [0, {MAX_SEED}]")
    return int(text)


@dataclass(frozen=True, slots=True)
class ChaosArguments:
    """Which server, and what of the scenario is different from what its file says."""

    address: Annotated[str, Option("HOST:PORT", parse=address, help="gRPC address of the server")]
    scenario: Annotated[
        str, Option("--scenario", metavar="NAME|FILE", help="one of those below, or a TOML file")
    ]
    control: Annotated[
        str | None,
        Option(
            "--control",
            parse=address,
            metavar="HOST:PORT",
            help="address of its ControlService (the same host, the next port)",
        ),
    ] = None
    duration: Annotated[
        float | None,
        Option(
            "--duration",
            parse=positive_seconds,
            metavar="S",
            help="seconds of load, at least (the scenario's)",
        ),
    ] = None
    streams: Annotated[
        int | None, Option("--streams", parse=positive, metavar="N", help="streams at once (the scenario's)")
    ] = None
    expert_file: Annotated[
        str | None,
        Option(
            "--expert-file",
            metavar="FILE",
            help="on the server's machine, for scenarios that exchange an expert",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option(
            "--seed", parse=seed_of, metavar="N", help="of sampling and of random choices (the scenario's)"
        ),
    ] = None
    connection: Annotated[ConnectionArguments, Group("connection")] = field(
        default_factory=ConnectionArguments
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    found = dict(scenarios())
    width = max(map(len, found), default=0)
    parser.epilog = (
        "scenarios:\n"
        + "\n".join(f"  {name:<{width}}  {about}" for name, about in found.items())
        + "\n\nThe exit code is 1 when an expectation of the scenario does not hold."
    )
    add_options(parser, ChaosArguments)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError where the package is not installed, and what it raises."""
    if not (FOLDER / "__main__.py").is_file():
        raise ConfigError("chaos is not installed; a checkout of the repository has it")
    return int(runpy.run_module("chaos")["run"](args))


def scenarios() -> Iterator[tuple[str, str]]:
    """Names, and what each says of itself."""
    for path in sorted(FOLDER.glob("scenarios/*.toml")):
        yield path.stem, str(tomllib.loads(path.read_text(encoding="utf-8")).get("about", ""))
