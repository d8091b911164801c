"""expertmesh bench NAME: one of the benchmarks, in the place of this process, with the arguments that follow.

They are no part of the product, which therefore does not import them.
"""

import argparse
import os
import sys
from pathlib import Path

from moe_model.errors import ConfigError

BENCHMARKS = {
    "bars": "every bar in one table: each figure, what was promised, met or missed; by row or all",
    "engine": "prefill and decode rates, alone and with expert workers, beside the origin without a cache",
    "serve": "what gRPC leaves of the engine's rate, and what clients wait for: closed loop and open loop",
    "dispatch": "one batch of rows to the expert workers and back, by size and by transport",
    "families": "what a decode step costs per byte of weights, beside one of ModularForge's",
    "loading": "what processes read, keep and wait for when they load models in true shapes",
    "peers": "rates beside llama.cpp and transformers, on the same machine and the same weights",
}
FOLDER = Path(__file__).parents[2] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, BENCHMARKS))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = f"{parser.prog} [-h] NAME ..."
    parser.epilog = (
        "benchmarks:\n"
        + "\n".join(f"  {name:<{width}}  {what}" for name, what in BENCHMARKS.items())
        + f"\n\n`{parser.prog} NAME --help` has its options. Each ends with one JSON line."
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its own arguments")


def run(args: argparse.Namespace) -> int:
    """Does not return. Raises ConfigError where the benchmarks are not installed."""
    program = command(args.name, args.arguments)
    sys.stdout.flush()
    os.execv(program[0], program)  # noqa: S606 - no shell is wanted; signals and exit code are its own


def command(name: str, arguments: list[str], folder: Path = FOLDER) -> list[str]:
    """What to run. Raises ConfigError."""
    if not ((folder / f"{name}.py").is_file() or (folder / name / "__main__.py").is_file()):
        raise ConfigError(f"benchmarks.{name} is not installed; a checkout of the repository has it")
    # -P: the benchmarks beside this code, not a folder of that name where the user stands.
    return [sys.executable, "-P", "-m", "benchmarks", name, *arguments]
