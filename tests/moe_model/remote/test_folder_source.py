"""A mirror of another machine's folder is the same checkpoint, and costs the bytes that are read."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.cache import CacheFolder
from moe_model.remote.folder_source import FolderSource, listing_of
from moe_model.remote.mirror import Mirror, open_mirror
from tests.models import write_checkpoint
from tests.moe_model.remote.remote_folders import write_published


def mirror_of(checkpoint: Checkpoint, cache: Path) -> Mirror:
    """As another machine makes it."""
    listing, source = listing_of(checkpoint), FolderSource(checkpoint.path)
    return open_mirror(
        listing.key(),
        listing,
        source,
        CacheFolder(cache),
        name=checkpoint.name,
        location=checkpoint.location,
    )


@pytest.fixture(params=["own", "hugging_face"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpoint]:
    if request.param == "own":
        yield Checkpoint.open(write_checkpoint(tmp_path / "mine"))
    else:
        yield Checkpoint.open(write_published(tmp_path / "mine"))


def test_the_same_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with closing(mirror_of(checkpoint, tmp_path / "cache")) as mirror:
        there = Checkpoint.open(mirror.path)
        assert there.fingerprint == checkpoint.fingerprint
        assert (there.name, there.location) == ("mine", str(checkpoint.path))
        for name, tensor in checkpoint.read_shared().items():
            assert torch.equal(there.read_shared()[name], tensor), name
        for layer in checkpoint.config.moe_layers:
            for expert in checkpoint.config.experts_of(layer):
                wanted, found = (each.read_expert(layer, expert) for each in (checkpoint, there))
                assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert there.verify() == checkpoint.verify()


def test_a_file_that_has_changed_meanwhile(checkpoint: Checkpoint) -> None:
    name = next(name for name in checkpoint.files if name.endswith(".safetensors"))
    source = FolderSource(checkpoint.path)
    source.read(name, [(0, 8)], Halt())
    path = checkpoint.path / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        source.read(name, [(0, 8)], Halt())


def test_one_that_replaces_another_is_kept_apart(tmp_path: Path) -> None:
    """Also where its fingerprint is the same: that is by samples."""
    folder = write_published(tmp_path / "mine")
    first = Checkpoint.open(folder)
    key = listing_of(first).key()
    path = max(folder.glob("*.safetensors"), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    sampled = [number * (len(data) - 4096) // 15 for number in range(16)]
    spot = sampled[7] + 4096 + 8
    data[spot : spot + 4] = bytes(4)
    path.write_bytes(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    second = Checkpoint.open(folder)
    assert second.fingerprint == first.fingerprint
    assert listing_of(second).key() != key
    assert listing_of(second).key() == listing_of(Checkpoint.open(folder)).key()
