"""Every shell script of deploy/, batch scripts of Slurm among them, by shellcheck."""

from pathlib import Path

import pytest

from tests.deploy.tools import deployed, named, run

pytestmark = pytest.mark.deploy

SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
cd "${1:?a folder}"
ls ./*.txt
"""


@pytest.mark.parametrize("path", named(deployed("*.sh", "*.sbatch")))
def test_a_script_has_no_findings(path: Path) -> None:
    found = run("shellcheck", "--shell=bash", path)
    assert found.code == 0, found.output


def test_a_good_script_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text(SCRIPT)
    assert run("shellcheck", "--shell=bash", tmp_path / "a.sh").code == 0


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ('"${1:?a folder}"', "$1", "SC2086"),
        ("ls ./*.txt", "for f in $(ls); do rm $f; done", "SC2045"),
        ("ls ./*.txt", 'echo "$undefined"', "SC2154"),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, old: str, new: str, finding: str) -> None:
    (tmp_path / "a.sh").write_text(SCRIPT.replace(old, new))
    found = run("shellcheck", "--shell=bash", tmp_path / "a.sh")
    assert found.code == 1
    assert finding in found.output
