"""The files of the repository, as git knows them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked(*endings: str) -> list[Path]:
    """All files of the repository with these endings."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\n")
    found = [ROOT / name for name in listed if name]
    if not found:
        pytest.skip("no git here: a source archive")
    return [path for path in found if path.suffix in endings and path.is_file()]
