"""expertmesh chaos: breaks workers of a live server under load, and says what its clients saw of it.

The package that does it is no part of the product, which therefore does not import it.
"""

import argparse
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

from expertmesh.commands.connection_arguments import add_connection_arguments
from expertmesh.commands.values import positive, positive_seconds
from moe_model.errors import ConfigError

MAX_SEED = 2**31
FOLDER = Path(__file__).parents[2] / "chaos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    found = dict(scenarios())
    width = max(map(len, found), default=0)
    parser.epilog = (
        "scenarios:\n"
        + "\n".join(f"  {name:<{width}}  {about}" for name, about in found.items())
        + "\n\nThe exit code is 1 when an expectation of the scenario does not hold."
    )
    parser.add_argument("address", type=address, metavar="HOST:PORT", help="gRPC address of the server")
    parser.add_argument(
        "--scenario", required=True, metavar="NAME|FILE", help="one of those below, or a TOML file"
    )
    parser.add_argument(
        "--control",
        type=address,
        metavar="HOST:PORT",
        help="address of its ControlService (the same host, the next port)",
    )
    parser.add_argument(
        "--duration", type=positive_seconds, metavar="S", help="seconds of load, at least (the scenario's)"
    )
    parser.add_argument("--streams", type=positive, metavar="N", help="streams at once (the scenario's)")
    parser.add_argument(
        "--expert-file",
        metavar="FILE",
        help="on the server's machine, for scenarios that exchange an expert",
    )
    parser.add_argument(
        "--seed", type=seed, metavar="N", help="of sampling and of random choices (the scenario's)"
    )
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError where the package is not installed, and what it raises."""
    if not (FOLDER / "__main__.py").is_file():
        raise ConfigError("chaos is not installed; a checkout of the repository has it")
    return int(runpy.run_module("chaos")["run"](args))


def seed(text: str) -> int:
    """Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_SEED):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not in [0, {MAX_SEED}]")
    return int(text)


def scenarios() -> Iterator[tuple[str, str]]:
    """Names, and what each says of itself."""
    for path in sorted(FOLDER.glob("scenarios/*.toml")):
        yield path.stem, str(tomllib.loads(path.read_text(encoding="utf-8")).get("about", ""))


def address(text: str) -> str:
    """HOST:PORT as it is. Raises ArgumentTypeError."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not HOST:PORT")
    return text
