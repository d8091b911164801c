"""Sums of blocks beside a folder: with them, bytes are what the author has seen, whoever sends them."""

import logging
import os
from pathlib import Path

import pytest

from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.remote.block_sums import write_block_sums
from moe_model.remote.open_url import open_url
from tests.moe_model.remote.remote_folders import assert_same, close_all, tensor_file


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_without_them_the_log_says_what_is_checked(
    url: str, published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Checkpoint.open(open_url(url))
    assert "bytes are checked by size and ETag only" in caplog.text
    close_all()
    write_block_sums(published, shards(published))
    caplog.clear()
    Checkpoint.open(open_url(url))
    assert caplog.text == ""


def test_other_bytes_under_the_same_version_are_found_out(url: str, published: Path) -> None:
    write_block_sums(published, shards(published))
    assert_same(Checkpoint.open(open_url(f"file://{published}")), published)
    path = tensor_file(published)
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    os.utime(path, ns=(0, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match=rf"{path.name}: the bytes from \d+ on do not have the sum"):
        assert_same(Checkpoint.open(open_url(url)), published)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"", b"", "model-00003-of-00003.safetensors: its sums are damaged"),
        (b"{", b"[", "Expecting"),
        (b"expertmesh block sums", b"sums", "has no block sums in it"),
        (b'"version": 1', b'"version": 2', "version 2 of 262144 bytes a block is unknown"),
        (b'"block_bytes": ', b'"block_bytes": 1', "version 1 of 1262144 bytes a block is unknown"),
        (b'"files": ', b'"files": 1, "more": ', "unknown key 'more'"),
        (
            b'"model-00001-of-00003.safetensors": [',
            b'"model-00001-of-00003.safetensors": [1',
            "has another size",
        ),
        (
            b'"model-00001-of-00003.safetensors": [',
            b'"model-00001-of-00003.safetensors": [[],',
            "expected a size",
        ),
    ],
)
def test_sums_that_are_damaged(url: str, published: Path, old: bytes, new: bytes, why: str) -> None:
    path = write_block_sums(published, shards(published))
    data = path.read_bytes()
    path.write_bytes(data.replace(old, new) if old else data[:-1])
    with pytest.raises(CheckpointError, match=f"block-sums: .*{why}"):
        open_url(url)


def test_a_folder_that_cannot_be_written(published: Path) -> None:
    """Also for root: a folder has the name that is written to first."""
    (published / f".block-sums.partial-{os.getpid()}").mkdir()
    with pytest.raises(CheckpointError, match="block-sums: File exists"):
        write_block_sums(published, shards(published))
