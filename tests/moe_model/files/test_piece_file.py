"""Files that are read piece by piece: only what was asked for, and only while the file is the same."""

import os
from pathlib import Path

import pytest

from moe_model.errors import CheckpointError
from moe_model.files.piece_file import PieceFile

DATA = bytes(range(256)) * 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pieces"
    path.write_bytes(DATA)
    return path


def test_pieces_and_all_of_it(path: Path) -> None:
    file = PieceFile(path)
    assert file.size == len(DATA)
    assert file.read(300, 5) == DATA[300:305]
    assert file.read(0, 0) == b""
    assert b"".join(file.chunks()) == DATA


def test_no_handle_stays_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    file = PieceFile(path)
    file.read(0, 10)
    assert os.listdir("/proc/self/fd") == before


def test_beyond_its_end(path: Path) -> None:
    with pytest.raises(CheckpointError, match="pieces: was cut short"):
        PieceFile(path).read(len(DATA) - 1, 2)


def test_a_file_that_was_cut_short(path: Path) -> None:
    file = PieceFile(path)
    os.truncate(path, 10)
    with pytest.raises(CheckpointError, match="pieces: was cut short"):
        file.read(0, 1)


@pytest.mark.parametrize("data", [DATA + b"x", DATA], ids=["longer", "the same bytes, written later"])
def test_a_file_that_another_has_replaced(path: Path, data: bytes) -> None:
    file = PieceFile(path)
    new = path.with_suffix(".new")
    new.write_bytes(data)
    os.utime(new, ns=(0, path.stat().st_mtime_ns + 1))
    new.rename(path)
    with pytest.raises(CheckpointError, match="pieces: has changed since it was opened"):
        file.read(0, 1)


def test_a_link_is_followed(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    assert PieceFile(link).read(1, 2) == DATA[1:3]


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a regular file"):
        PieceFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: is not a regular file"):
        PieceFile(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="gone: No such file"):
        PieceFile(tmp_path / "gone")
