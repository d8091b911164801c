"""Few examples by default, all of them where the full profile is asked for: counted in a run of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracked import ROOT

COUNTING = """
from hypothesis import given, settings, strategies as st
from tests.examples import examples

count = {"said": 0, "unsaid": 0}

@settings(max_examples=examples(60))
@given(st.integers())
def test_said(number):
    count["said"] += 1

@given(st.integers())
def test_unsaid(number):
    count["unsaid"] += 1

def test_counts():
    with open("counts", "w") as file:
        file.write(f"{count['said']} {count['unsaid']}")
"""
CONFTEST = "from tests.examples import register_profiles\nregister_profiles()\n"


@pytest.mark.parametrize(
    ("options", "counts"), [([], "12 20"), (["--hypothesis-profile=full"], "60 100")], ids=["quick", "full"]
)
def test_profiles(tmp_path: Path, options: list[str], counts: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_counting.py").write_text(COUNTING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "counts").read_text() == counts
