"""Scenarios E7 and E8: files that are cut short while they are in use, full disks and failing ones."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.server.main import open_server
from expertmesh import AsyncClient
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from tests.moe_model.source_files import (
    TINY,
    state_dict,
    write_assembled,
    write_checkpoint,
    write_config,
    write_safetensors,
)
from tests.scenarios.disks import failing_disk, full_disk
from tests.scenarios.starting import command_refuses, config_of, refusal_of

EXPERT = "experts/layer_0001/expert_0002.safetensors"
HEAD = "shared.lm_head.weight"


# E7: files that are cut short or replaced while they are in use.


async def test_e7_a_file_cut_short_while_it_is_read_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut between asking for its size and reading it, the last moment there is."""
    cut: list[str] = []
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status, path = real(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(EXPERT):
            os.truncate(path, status.st_size // 2)
            cut.append(path)
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    assert f"{EXPERT}: was cut short while it was read" in await refusal_of(folder)
    assert cut, "the fault happened"


async def test_e7_a_running_server_does_not_depend_on_its_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    subprocess.run(["cp", "-r", tiny_checkpoint, folder], check=True)
    async with open_server(config_of(folder)) as server, AsyncClient(server.fronts.grpc.address) as client:
        expected = await client.generate([5, 6, 7], max_tokens=8, temperature=0, return_token_ids=True)
        maps = Path("/proc/self/maps").read_text()
        assert str(folder) not in maps, "no file of it is mapped"
        assert "/" in maps
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            os.truncate(path, 0)
        again = await client.generate([5, 6, 7], max_tokens=8, temperature=0, return_token_ids=True)
    assert again.token_ids == expected.token_ids
    with pytest.raises(CheckpointError):
        Checkpoint.open(folder)


IMPORT = """
import os, sys
from moe_model.errors import CheckpointError
from moe_model.checkpoint.importer import import_checkpoint
source, dest = sys.argv[1:]
cuts = 0
def cut(done, total):
    global cuts
    if done == 3:
        os.truncate(source, 4096)
        cuts += 1
try:
    import_checkpoint(source, dest, on_progress=cut)
except CheckpointError as error:
    print(cuts, error)
"""


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_e7_a_source_cut_short_during_an_import_is_an_error(source: Path, tmp_path: Path, kind: str) -> None:
    """In a process of its own: a mapped file that is cut short would end it with SIGBUS."""
    if kind == "torch":
        path = write_assembled(source, TINY, state_dict(TINY))
    else:
        path = write_safetensors(source, state_dict(TINY), dropped=HEAD)
        write_config(source, TINY)
    assert path.stat().st_size > 8192
    command = [sys.executable, "-c", IMPORT, str(path), str(tmp_path / "new")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != -signal.SIGBUS, "killed"
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"1 {path}: ")
    assert "cut short" in result.stdout
    assert sorted(os.listdir(tmp_path)) == ["source"]


# E8: disks that are full, and disks that fail.


@pytest.mark.parametrize("command", ["init", "import"])
def test_e8_a_full_disk_leaves_nothing_half_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = write_assembled(source, TINY, state_dict(TINY))
    arguments = ["--config", write_config(source, TINY)] if command == "init" else []
    with full_disk(tmp_path / "disk", num_kib=24) as disk:
        where = [] if command == "init" else [path]
        line = command_refuses(capsys, command, *where, disk / "new", *arguments)
        assert "cannot be written: No space left on device" in line, "the fault happened"
        assert os.listdir(disk) == []


async def test_e8_a_failing_disk_is_named_at_the_start(tmp_path: Path) -> None:
    large = replace(TINY, d_model=64, d_ff=512)
    with failing_disk(tmp_path / "disk", lambda disk: write_checkpoint(disk / "new", large)) as disk:
        message = await refusal_of(disk / "new")
    assert message.startswith(f"{disk}/new/")
    assert message.endswith(": Input/output error"), "the fault happened"


def test_e8_a_source_on_a_failing_disk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = replace(TINY, d_model=64, d_ff=512)
    config = write_config(tmp_path, large)

    def fill(disk: Path) -> None:
        write_safetensors(disk, state_dict(large), dropped=HEAD)

    with failing_disk(tmp_path / "disk", fill) as disk:
        path = disk / "assembled_model.safetensors"
        line = command_refuses(capsys, "import", path, tmp_path / "new", "--config", config)
        assert line.endswith(f"{path}: Input/output error"), "the fault happened"
    assert not (tmp_path / "new").exists()


def test_e8_a_source_that_cannot_be_read_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first page of a process's memory: a file whose every read fails with EIO, for whoever asks."""
    path = source / "assembled_model.pt"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    line = command_refuses(capsys, "import", path, tmp_path / "new")
    assert line.endswith("assembled_model.pt: Input/output error")
    assert sorted(os.listdir(tmp_path)) == ["source"]
