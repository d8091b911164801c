"""expertmesh completion: a real bash learns it, and is asked as a press of TAB asks it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import run_command

# The word under the cursor is the last one; COMP_WORDS and the rest are what bash sets at a press of TAB.
ASK = r"""
eval "$(expertmesh completion bash)"
complete -p expertmesh >/dev/null || exit 9
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
[[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete expertmesh
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with this tree's command in it."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "expertmesh"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m expertmesh.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def completed(line: str, path: str) -> set[str]:
    """What bash offers for a line."""
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = ["bash", "--norc", "-c", ASK, "bash", line]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=True)
    assert result.stderr == ""
    return {word.strip() for word in result.stdout.splitlines() if word.strip()}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("expertmesh ser", {"serve"}),
        ("expertmesh in", {"inspect", "init"}),
        ("expertmesh serve x --repl", {"--replicas", "--replace-workers"}),
        ("expertmesh serve x --dtype ", {"float32", "bfloat16"}),
        ("expertmesh experts re", {"replace", "remove"}),
        ("expertmesh experts list h:1 --tls-c", {"--tls-ca", "--tls-cert"}),
        (
            "expertmesh bench ",
            {"bars", "engine", "serve", "dispatch", "families", "loading", "peers", "--help"},
        ),
        ("expertmesh completion f", {"fish"}),
        ("expertmesh --ver", {"--version"}),
    ],
)
def test_bash_completes(line: str, offered: set[str], path: str) -> None:
    assert completed(line, path) == offered


def test_bash_completes_files(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completed("expertmesh serve my", path) == {"my-model/"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_lines(shell: str, tmp_path: Path) -> None:
    result = run_command("completion", shell)
    assert result.returncode == 0
    assert "expertmesh" in result.stdout
    if shutil.which(shell):
        script = tmp_path / "lines"
        script.write_text(result.stdout, encoding="utf-8")
        subprocess.run([shell, "-n", str(script)], check=True, timeout=60)
