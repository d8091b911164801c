"""A Hugging Face folder as a checkpoint: opened as it is, told from others, verified; in a cache too."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_model.checkpoint.importer import import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.families.mixtral.family import Mixtral
from tests.moe_model.checkpoint.hugging_face.written import (
    CONFIG,
    cached,
    make_tensors,
    write_folder,
    write_json,
)

TENSORS = make_tensors()
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "downloaded", TENSORS, shards=2)


def test_what_it_is(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.name == "downloaded"
    assert checkpoint.config.family == "mixtral"
    assert checkpoint.dtype == torch.float32
    assert set(checkpoint.files) == {path.name for path in folder.iterdir()}
    for name, entry in checkpoint.files.items():
        data = (folder / name).read_bytes()
        assert entry.size == len(data)
        assert entry.sha256 == (None if name.endswith(".safetensors") else hashlib.sha256(data).hexdigest())
    assert checkpoint.read_tokenizer() is None
    checkpoint.verify()


def test_what_is_read_is_what_an_import_writes(folder: Path, tmp_path: Path) -> None:
    import_checkpoint(folder, tmp_path / "ours")
    ours, theirs = Checkpoint.open(tmp_path / "ours"), Checkpoint.open(folder)
    assert ours.config == theirs.config
    modules = [
        (layer, expert) for layer in ours.config.moe_layers for expert in ours.config.experts_of(layer)
    ]
    parts = [(ours.read_shared(), theirs.read_shared())]
    parts += [(ours.read_expert(*key), theirs.read_expert(*key)) for key in modules]
    for mine, other in parts:
        assert mine.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    half = theirs.read_expert(1, 2, torch.bfloat16)
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}


def test_what_the_family_keeps_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "blocks.1.router.weight"
    monkeypatch.setattr(Mixtral, "float32_names", lambda *_: frozenset({name}))
    theirs = "model.layers.1.block_sparse_moe.gate.weight"
    mixed = {each: tensor.bfloat16() for each, tensor in TENSORS.items()} | {theirs: TENSORS[theirs]}
    folder = write_folder(tmp_path / "theirs", mixed)
    import_checkpoint(folder, tmp_path / "ours")
    for path in (folder, tmp_path / "ours"):
        checkpoint = Checkpoint.open(path)
        assert checkpoint.dtype == torch.bfloat16
        shared = checkpoint.read_shared()
        assert {each for each, tensor in shared.items() if tensor.dtype == torch.float32} == {name}
        assert torch.equal(shared[name], TENSORS[theirs])
        checkpoint.verify()


def test_it_holds_no_file_open(folder: Path) -> None:
    before = os.listdir("/proc/self/fd")
    checkpoint = Checkpoint.open(folder)
    checkpoint.read_expert(0, 0)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_is_written_to_is_not_read_any_more(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    path = folder / SHARD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match=f"{SHARD}: has changed since it was opened"):
        checkpoint.read_shared()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a value": lambda folder: flip(folder / SHARD, -1),
    "a header": lambda folder: (folder / SHARD).write_bytes(
        (folder / SHARD).read_bytes().replace(b" ", b"\n")
    ),
    "sampling": lambda folder: write_json(folder / "generation_config.json", {"temperature": 0.5}),
    "the config": lambda folder: write_json(folder / "config.json", {**CONFIG, "rms_norm_eps": 1e-5}),
    "a template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_tells_folders_apart(change: str, folder: Path, tmp_path: Path) -> None:
    first = Checkpoint.open(folder)
    same = Checkpoint.open(write_folder(tmp_path / "another", TENSORS, shards=2))
    assert same.fingerprint == first.fingerprint
    assert same.expert_sha256(1, 2) == first.expert_sha256(1, 2)
    os.utime(folder / SHARD, (0, 0))
    assert Checkpoint.open(folder).fingerprint == first.fingerprint, "of no clock"
    CHANGES[change](folder)
    changed = Checkpoint.open(folder)
    assert changed.fingerprint != first.fingerprint
    assert changed.expert_sha256(1, 2) != first.expert_sha256(1, 2)


def test_all_of_a_header_counts(tmp_path: Path) -> None:
    """Also what no sample has: here two names that have changed places."""
    many = {f"mtp.layers.two.n{number:05d}": torch.ones(1) for number in range(2000)}
    path = write_folder(tmp_path / "many", TENSORS | many) / "model.safetensors"
    first = Checkpoint.open(path.parent).fingerprint
    data = path.read_bytes()
    assert len(data) > 15 * 6000, "samples lie further apart"
    start = data.index(b'"mtp.layers.two.n', 5000)
    names = [data[place : place + 22] for place in (start, data.index(b'"mtp.layers.two.n', start + 1))]
    assert start + 200 < 6000
    assert len(set(names)) == 2
    swapped = data.replace(names[0], b"?" * 22).replace(names[1], names[0]).replace(b"?" * 22, names[1])
    path.write_bytes(swapped)
    assert Checkpoint.open(path.parent).fingerprint != first


def test_versions_of_experts(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    sums = {checkpoint.expert_sha256(layer, expert) for layer in range(2) for expert in range(3)}
    assert len(sums) == 6


@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
def test_a_snapshot_in_a_cache(revision: str, folder: Path, tmp_path: Path) -> None:
    """Its files are links to blobs, of which the larger ones are called by their SHA-256."""
    snapshot = cached(folder, tmp_path / "hub", "some-org/Some--Model", revision)
    checkpoint = Checkpoint.open(snapshot)
    assert checkpoint.name == "some-org/Some--Model"
    data = (folder / SHARD).read_bytes()
    assert checkpoint.files[SHARD].sha256 == hashlib.sha256(data).hexdigest()
    assert torch.equal(
        checkpoint.read_shared()["head.weight"], Checkpoint.open(folder).read_shared()["head.weight"]
    )
    checkpoint.verify()


def test_a_blob_that_was_changed(folder: Path, tmp_path: Path) -> None:
    snapshot = cached(folder, tmp_path / "hub", "org/model")
    flip(snapshot / SHARD, -1)
    with pytest.raises(
        CheckpointError, match=f"{SHARD}: SHA-256 is not that of the file which was downloaded"
    ):
        Checkpoint.open(snapshot).verify()


def test_blobs_tell_snapshots_apart_by_their_names(folder: Path, tmp_path: Path) -> None:
    """Of a byte that no sample has."""
    big = {**TENSORS, "mtp.beyond": torch.zeros(1 << 18)}
    first = Checkpoint.open(cached(write_folder(folder, big), tmp_path / "hub", "org/model"))
    big["mtp.beyond"][5000] = 1
    second = Checkpoint.open(cached(write_folder(folder, big), tmp_path / "hub", "org/model"))
    assert first.fingerprint != second.fingerprint


def test_what_a_download_into_a_folder_has_noted(folder: Path) -> None:
    notes = folder / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    found = hashlib.sha256((folder / SHARD).read_bytes()).hexdigest()
    (notes / f"{SHARD}.metadata").write_text(f"{'0' * 40}\n{found}\n1700000000.0\n")
    (notes / "model-00002-of-00002.safetensors.metadata").write_text("cut short")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.files[SHARD].sha256 == found
    assert checkpoint.files["model-00002-of-00002.safetensors"].sha256 is None
    checkpoint.verify()
    flip(folder / SHARD, -1)
    with pytest.raises(CheckpointError, match="SHA-256 is not that of the file which was downloaded"):
        Checkpoint.open(folder).verify()


def test_verifying_looks_at_every_value(tmp_path: Path) -> None:
    broken = {name: tensor.clone() for name, tensor in TENSORS.items()}
    broken["model.layers.1.block_sparse_moe.experts.2.w2.weight"][3, 1] = torch.nan
    checkpoint = Checkpoint.open(write_folder(tmp_path / "broken", broken, shards=3))
    with pytest.raises(CheckpointError, match=r"tensor '.*experts\.2\.w2\.weight' has values that are not"):
        checkpoint.verify()
    files: list[str] = []
    Checkpoint.open(write_folder(tmp_path / "whole", TENSORS, shards=3)).verify(files.append)
    assert sorted(files) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_a_cache_of_which_a_blob_is_gone(folder: Path, tmp_path: Path) -> None:
    snapshot = cached(folder, tmp_path / "hub", "org/model")
    (snapshot / SHARD).resolve().unlink()
    with pytest.raises(CheckpointError, match=f"{SHARD}: No such file or directory"):
        Checkpoint.open(snapshot)
