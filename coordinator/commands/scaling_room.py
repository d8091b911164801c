"""Commands of the package `scaling`, which is no part of the product and is loaded when one of them runs."""

import argparse
import runpy
from pathlib import Path

from moe_model.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "scaling"
# What the extra `scaling` brings.
LIBRARIES = ("matplotlib", "pyarrow", "scipy", "simpy")


def run_command(name: str, args: argparse.Namespace) -> int:
    """Raises ConfigError where the package or a library of its extra is not installed, and what it raises."""
    if not (FOLDER / "commands" / f"{name}.py").is_file():
        raise ConfigError(f"{name} is not installed; a checkout of the repository has it")
    try:
        return int(runpy.run_module(f"scaling.commands.{name}")["run"](args))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in LIBRARIES:
            raise ConfigError(f"{error.name} is missing: pip install 'expertmesh[scaling]'") from error
        raise
