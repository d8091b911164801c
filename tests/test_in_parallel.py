"""What stays together under pytest-xdist, and what is printed of each folder: seen in runs of their own."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.in_parallel import TOGETHER, group_of
from tests.time_per_folder import folder_of
from tests.tracked import ROOT

FILE = """
import os
import time

def use_processor_and_tell():
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    with open("told", "a") as told:
        told.write(f"{__name__} {os.getpid()}\\n")

def test_first():
    use_processor_and_tell()

def test_second():
    use_processor_and_tell()
"""
FOLDERS = ("tests/a", "tests/integration", "tests/z")


def test_a_group_is_a_file_or_what_shares_something() -> None:
    assert group_of("tests/a/test_b.py::test_c[x::y]") == "tests/a/test_b.py"
    assert group_of("tests/integration/test_b.py::test_c") == group_of("tests/scenarios/test_d.py::test_e")
    assert group_of("tests/integration/test_openai.py::test_c") == "demo server"
    assert group_of("tests/integration_of/test_b.py::test_c") == "tests/integration_of/test_b.py"


def test_what_is_kept_together_is_there() -> None:
    assert [start for start in TOGETHER if not (ROOT / start).exists()] == []


def test_a_folder_is_named_three_deep_at_most() -> None:
    assert folder_of("tests/test_a.py::test_b[c/d]") == "tests"
    assert folder_of("tests/a/b/c/d/test_e.py::test_f") == "tests/a/b"


def run_pytest(folder: Path, *options: str) -> str:
    """A run of two files in each of `FOLDERS`; what it prints."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        for file in ("test_1.py", "test_2.py"):
            (folder / name / file).write_text(FILE)
    plugins = ("-p", "tests.in_parallel", "-p", "tests.time_per_folder", "--time-per-folder")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", *plugins, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told(folder: Path) -> list[tuple[str, str]]:
    """Which module's test ran in which process, in the order of their ends."""
    lines = (folder / "told").read_text().splitlines()
    return [(module, pid) for module, _, pid in (line.partition(" ") for line in lines)]


def test_servers_have_one_process_and_no_file_has_two(tmp_path: Path) -> None:
    run_pytest(tmp_path, "-n", "2")
    processes = defaultdict(set)
    for module, pid in told(tmp_path):
        group = "servers" if "integration" in module else module
        processes[group].add(pid)
    assert len(processes) == 1 + 2 * 2
    assert all(len(pids) == 1 for pids in processes.values())
    assert len(set.union(*processes.values())) == 2, "both processes work"


def test_servers_come_first(tmp_path: Path) -> None:
    run_pytest(tmp_path)
    assert ["integration" in module for module, _ in told(tmp_path)] == [True] * 4 + [False] * 8


def test_the_costs_of_all_processes_are_printed_by_folder(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, "-n", "2")
    rows = {line.split()[3]: line.split()[:3] for line in printed.splitlines() if len(line.split()) == 4}
    for name, cases in {**dict.fromkeys(FOLDERS, 4), "all": 12}.items():
        count, _, processor = rows[name]
        assert int(count) == cases
        assert 0.05 * cases <= float(processor) < 60
