"""Commands that run our code in other processes, from a user's folder with packages of our names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.foreign_folder import foreign_folder
from tests.integration.processes import DEMO_CHECKPOINT

# As the console script, which does not look for modules where it is called.
COMMAND = (sys.executable, "-P", "-m", "expertmesh.cli")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return foreign_folder(tmp_path)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=170, check=False)


def test_the_folder_is_a_trap(folder: Path) -> None:
    done = run(folder, sys.executable, "-c", "import coordinator")
    assert "the user's own coordinator was loaded" in done.stderr


def test_ray_workers_server_and_client(folder: Path) -> None:
    """Ray puts the driver's working folder first on its workers' path, where nothing keeps it from that."""
    done = run(
        *(folder, *COMMAND, "demo", str(DEMO_CHECKPOINT), "--prompt", "x"),
        *("--max-tokens", "3", "--workers", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "3 tokens" in done.stdout + done.stderr


@pytest.mark.long
def test_benchmarks(folder: Path) -> None:
    """With a server in a process of its own."""
    few = ["--workers=0", "--clients=1", "--rates=", "--requests=1", "--rounds=1"]
    short = ["--prompt-tokens=8", "--new-tokens=4", "--checkpoint", str(DEMO_CHECKPOINT)]
    done = run(folder, *COMMAND, "bench", "serve", *few, *short)
    assert done.returncode == 0, done.stderr


def test_chaos(folder: Path) -> None:
    """As far as a server that is not there."""
    done = run(folder, *COMMAND, "chaos", "127.0.0.1:1", "--scenario", "kill-one", "--duration", "1")
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith("expertmesh chaos: error: ")
    assert "nothing listens at 127.0.0.1:" in line


@pytest.mark.parametrize("arguments", [["inspect", str(DEMO_CHECKPOINT)], ["keys", "new", "x"], ["--help"]])
def test_commands_in_one_process(folder: Path, arguments: list[str]) -> None:
    done = run(folder, *COMMAND, *arguments)
    assert done.returncode == 0, done.stderr


def test_the_installed_command(folder: Path) -> None:
    script = Path(sys.executable).with_name("expertmesh")
    assert os.access(script, os.X_OK), "make install"
    done = run(folder, str(script), "inspect", str(DEMO_CHECKPOINT))
    assert done.returncode == 0, done.stderr
