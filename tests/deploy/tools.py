"""The tools that check files of deploy/, which `make check-deploy` installs. A missing one fails its tests.

A check is a module `test_*.py` here, marked `deploy`, that runs its tool on every file of its kind, and then
on files with a mistake in each, which the tool must find: a check that cannot fail checks nothing.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / ".venv-deploy"
# Before what the machine has, which may be any version.
PLACES = (TOOLS / "bin", TOOLS / "debian" / "usr" / "bin")
# What a package is called where a command has another name, for those that the target does not bring.
PACKAGES = {"promtool": "prometheus", "systemd-analyze": "systemd", "sbatch": "slurm-wlm"}


@dataclass(frozen=True)
class Ran:
    """What a command has done."""

    code: int
    output: str
    """Both of its outputs, one after the other."""


def tool(name: str) -> str:
    """Where a command is; fails the test with what to install where it is nowhere."""
    found = next((str(place / name) for place in PLACES if os.access(place / name, os.X_OK)), None)
    found = found or shutil.which(name)
    if found is None:
        package = PACKAGES.get(name)
        how = f"apt-get install {package}" if package else "python scripts/deploy_tools.py"
        pytest.fail(f"{name} is missing, which this check takes: {how}")
    return found


def run(name: str, *arguments: str | Path, text: str | None = None, seconds: float = 120) -> Ran:
    """Runs a tool, in a folder that has nothing of ours; `text` is its standard input."""
    command = [tool(name), *map(str, arguments)]
    # kubectl shall know no cluster, nor any other tool the settings of a person.
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    done = subprocess.run(
        command,
        input=text,
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Ran(done.returncode, done.stdout + done.stderr)


def deployed(*patterns: str) -> list[Path]:
    """The files of deploy/ whose names are like this, such as `*.service`."""
    return sorted({path for pattern in patterns for path in DEPLOY.rglob(pattern) if path.is_file()})


def named(paths: Iterable[Path]) -> list[object]:
    """Files as parameters of a test, under their names below deploy/."""
    return [pytest.param(path, id=str(path.relative_to(DEPLOY))) for path in paths]
