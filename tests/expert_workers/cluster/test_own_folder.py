"""What a killed process leaves, the next start removes; what is in use, or is not ours, stays."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_workers.cluster.own_folder import OwnFolder, left_behind
from moe_model.errors import ClusterError

OWNER = """
import sys
from expert_workers.cluster.own_folder import OwnFolder
folder = OwnFolder()
(folder.ray / "socket").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a short name, as below it there are sockets. `tmp_path` is made where it was before."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def start_owner() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_closed_to_others_and_goes_with_its_owner(parent: Path) -> None:
    own = OwnFolder()
    assert own.path.parent == parent
    assert stat.S_IMODE(own.path.stat().st_mode) == 0o700
    assert own.ray.is_dir()
    own.remove()
    own.remove()
    assert list(parent.iterdir()) == []


def test_only_what_a_killed_owner_left_is_removed(parent: Path) -> None:
    living, its_folder = start_owner()
    killed, left = start_owner()
    with living, killed:
        killed.kill()
        killed.wait()
        assert (left / "r" / "socket").exists()
        assert list(left_behind(parent)) == [left]
        own = OwnFolder()
        assert set(parent.iterdir()) == {its_folder, own.path}
        own.remove()
        living.kill()


def test_what_is_not_surely_ours_and_abandoned_stays(parent: Path, tmp_path: Path) -> None:
    """A link to a folder, one that others may write, one that has another's lock file or none, a new one."""
    (tmp_path / "aim" / "r").mkdir(parents=True)
    (tmp_path / "aim" / "owner").touch()
    (tmp_path / "aim").chmod(0o700)
    (parent / "em-link").symlink_to(tmp_path / "aim")
    for name in ("em-open", "em-odd", "em-foreign", "em-new"):
        (parent / name).mkdir(0o700)
    (parent / "em-open" / "owner").touch()
    (parent / "em-open").chmod(0o777)
    (parent / "em-odd" / "owner").symlink_to(tmp_path / "aim" / "owner")
    (parent / "em-foreign" / "session").mkdir()
    (parent / "em-file").touch(0o700)
    os.utime(parent / "em-foreign", (0, 0))
    assert list(left_behind(parent)) == []
    os.utime(parent / "em-new", (0, 0))
    assert list(left_behind(parent)) == [parent / "em-new"], "it never got an owner"


def test_what_could_not_be_locked_is_not_left(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without locks; nor is that of a process which was killed before it had its lock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(ClusterError, match="No locks available"):
            OwnFolder()
    assert list(parent.iterdir()) == []
    (parent / "em-making").mkdir(0o700)
    (parent / "em-making" / "owner.new").touch()
    assert list(left_behind(parent)) == []
    os.utime(parent / "em-making", (0, 0))
    assert list(left_behind(parent)) == [parent / "em-making"]


def test_what_cannot_be_removed_whole_is_known_the_next_time(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has not ended yet may still write there."""
    killed, left = start_owner()
    with killed:
        killed.kill()
    rmtree = shutil.rmtree

    def remove(path: Path, *, ignore_errors: bool) -> None:
        if path == left:
            (left / "owner").unlink(missing_ok=True)
        elif path != left / "r":
            rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", remove)
    OwnFolder().remove()
    assert list(left_behind(parent)) == [left]
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    OwnFolder().remove()
    assert list(parent.iterdir()) == []


def test_an_owner_of_another_user_is_left_alone(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, left = start_owner()
    with killed:
        killed.kill()
    assert list(left_behind(parent)) == [left]
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert list(left_behind(parent)) == []


def test_paths_that_are_too_long_for_sockets_are_not_used(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """29 bytes are just not too long."""
    name = "x" * (29 - len(str(parent)) - 1)
    for folder, is_used in ((parent / name, True), (parent / f"{name}x", False)):
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        own = OwnFolder()
        try:
            assert (own.path.parent == folder) is is_used
            socket = own.ray / "session_2026-11-29_21-42-11_123456_1234567" / "sockets" / "plasma_store"
            assert len(os.fsencode(socket)) <= 107
        finally:
            own.remove()


def test_where_nothing_can_be_written_it_is_said(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(parent / "not"))
    with pytest.raises(
        ClusterError, match=r"set TMPDIR to a folder that can be written, of a path of at most 29 bytes"
    ):
        OwnFolder()
