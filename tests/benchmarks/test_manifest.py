"""What is written about where a benchmark ran, and what must not be."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.manifest import ROOT, commit, manifest, processor, settings, shown

X86 = """\
processor\t: 0
model name\t: Some Processor 9
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile

processor\t: 1
model name\t: Some Processor 9
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


def test_it_says_what_numbers_depend_on() -> None:
    found = manifest("benchmarks.engine", ["--batches", "1,8"])
    assert found["command"] == "python -m benchmarks.engine --batches 1,8"
    for name in ("commit", "dirty", "date", "cpu", "cpu_flags", "cores", "memory_bytes", "kernel", "gpu"):
        assert name in found, name
    assert found["python"]
    versions = found["versions"]
    assert isinstance(versions, dict)
    assert set(versions) == {"expertmesh", "torch", "ray", "grpcio"}
    assert all(versions.values())
    averages = found["load_average"]
    assert isinstance(averages, tuple)
    assert len(averages) == 3


def test_it_names_no_machine_and_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("socket.gethostname", lambda: "this-machine")
    monkeypatch.setattr("platform.node", lambda: "this-machine")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("KMP_STATS_FILE", str(home / "stats"))
    arguments = ["--checkpoint", str(home / "models" / "tiny"), f"--out={home}", "~/x", "../above/it"]
    text = json.dumps(manifest("benchmarks.engine", arguments))
    for mark in ("somebody", "above", "this-machine", str(tmp_path), str(ROOT)):
        assert mark not in text, mark
    assert "--checkpoint tiny --out=~ x it" in text
    assert '"OMP_NUM_THREADS": "2"' in text


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("demo/checkpoint", "demo/checkpoint"),
        ("--rates=2,8", "--rates=2,8"),
        ("/somewhere/models/big", "big"),
        ("--checkpoint=/somewhere/big", "--checkpoint=big"),
        ("../results", "results"),
        ("", ""),
    ],
)
def test_an_argument_loses_its_folders(argument: str, expected: str) -> None:
    assert shown(argument) == expected


def test_a_path_below_the_working_folder_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(f"--out={tmp_path / 'results' / 'new'}") == "--out=results/new"


def test_the_processor_and_its_flags() -> None:
    assert processor(X86) == {
        "cpu": "Some Processor 9",
        "cpu_flags": ["avx2", "avx512f", "avx512_bf16", "amx_tile"],
    }
    assert processor(ARM)["cpu_flags"] == ["asimd", "bf16"]
    assert processor("") == {"cpu": os.uname().machine, "cpu_flags": []}


def test_settings_are_those_of_the_thread_pools() -> None:
    environment = {"OMP_NUM_THREADS": "1", "MKL_DYNAMIC": "FALSE", "HOSTNAME": "x", "RAY_TOKEN": "secret"}
    assert settings(environment) == {"MKL_DYNAMIC": "FALSE", "OMP_NUM_THREADS": "1"}


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    result = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_a_commit_and_whether_it_is_that(tmp_path: Path) -> None:
    assert commit(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "--quiet")
    assert commit(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "file").write_text("one", encoding="utf-8")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == {"commit": head, "dirty": False}
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "new.json").write_text("{}", encoding="utf-8")
    assert commit(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "another").write_text("new", encoding="utf-8")
    assert commit(tmp_path) == {"commit": head, "dirty": True}
    # Installed somewhere below somebody else's repository.
    assert commit(results) == {"commit": None, "dirty": None}
