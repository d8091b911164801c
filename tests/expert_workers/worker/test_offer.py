"""A worker on a machine without the checkpoint: it reads its own experts from others, and lends them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from expert_workers.worker.expert_source import CheckpointSource, WorkerSpec
from expert_workers.worker.expert_worker import ExpertWorker
from expert_workers.worker.offer import Lender, Offer
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import MANIFEST, expert_file
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, WorkerStartError
from moe_model.halt import Halt
from moe_model.remote.folder_source import listing_of
from moe_model.remote.listing import BLOCK_BYTES
from moe_model.remote.source import Range
from moe_model.versions.expert_versions import checkpoint_modules
from tests.expert_workers.fakes import make_config

CONFIG = make_config()
KEYS = [(0, 1), (1, 3)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    (tmp_path / "there").mkdir()
    initialise_checkpoint(tmp_path / "there" / "model", CONFIG)
    return Checkpoint.open(tmp_path / "there" / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPERTMESH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Others:
    """A RangeSource: the other machines, as one lends."""

    where = "the others"

    def __init__(self, *lenders: Lender | CheckpointSource) -> None:
        self.lenders = lenders
        self.asked: list[tuple[str, Range]] = []

    def read(self, name: str, ranges: Sequence[Range], halt: Halt) -> Sequence[bytes]:
        self.asked += [(name, each) for each in ranges]
        for lender in self.lenders:
            found = lender.lend(name, ranges, is_urgent=True)
            if found is not None:
                return found
        raise CheckpointError(f"{name}: nowhere")

    @property
    def experts(self) -> set[str]:
        return {name for name, _ in self.asked if name.startswith("experts/")}


def spec_of(checkpoint: Checkpoint, path: Path, rate: float | None = None) -> WorkerSpec:
    offer, sums = Offer(checkpoint.name, listing_of(checkpoint)), checkpoint.fingerprint
    return WorkerSpec(0, str(path), checkpoint.dtype, fingerprint=sums, offer=offer, bytes_per_second=rate)


def test_it_fetches_its_own_experts_and_no_others(checkpoint: Checkpoint, tmp_path: Path) -> None:
    others = Others(Lender(checkpoint, None, None))
    source = CheckpointSource(spec_of(checkpoint, tmp_path / "nowhere"), others)
    assert not source.has_files
    worker = ExpertWorker(source._spec, source)
    worker.load(checkpoint_modules(KEYS))
    assert others.experts == {expert_file(*key) for key in KEYS}
    assert worker.describe().fingerprint == checkpoint.fingerprint
    local = ExpertWorker(WorkerSpec(0, str(checkpoint.path), checkpoint.dtype))
    local.load(checkpoint_modules(KEYS))
    said, wanted = worker.canary(KEYS), local.canary(KEYS)
    assert all(np.array_equal(said[key], wanted[key]) for key in KEYS)
    sizes = {name: checkpoint.files[name].size for name in others.experts}
    texts = sum(size for name, size in _all_sizes(checkpoint).items() if not name.endswith(".safetensors"))
    assert source.num_fetched <= sum(sizes.values()) + texts + BLOCK_BYTES


def _all_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    sizes = {name: entry.size for name, entry in checkpoint.files.items()}
    return {**sizes, MANIFEST: (checkpoint.path / MANIFEST).stat().st_size}


def test_what_one_has_fetched_it_lends_to_the_next(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_all = Lender(checkpoint, None, None)
    first = CheckpointSource(spec_of(checkpoint, tmp_path / "nowhere"), Others(has_all))
    first.open()
    first.read(checkpoint_modules([(0, 1)])[0])
    monkeypatch.setenv("EXPERTMESH_CACHE", str(tmp_path / "another"))
    others = Others(first)
    second = CheckpointSource(spec_of(checkpoint, tmp_path / "nowhere"), others)
    second.open()
    second.read(checkpoint_modules([(0, 1)])[0])
    with pytest.raises(CheckpointError, match="nowhere"):
        second.read(checkpoint_modules([(0, 2)])[0])
    assert first.num_fetched == second.num_fetched


def test_a_machine_that_has_the_files_asks_nobody(checkpoint: Checkpoint) -> None:
    others = Others()
    source = CheckpointSource(spec_of(checkpoint, checkpoint.path), others)
    assert source.has_files
    source.hurry(is_urgent=False)
    ExpertWorker(source._spec, source).load(checkpoint_modules(KEYS))
    assert (others.asked, source.num_fetched) == ([], 0)


def test_an_empty_folder_is_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    others, path = Others(Lender(checkpoint, None, None)), tmp_path / "here"
    source = CheckpointSource(spec_of(checkpoint, path), others)
    path.mkdir()
    assert not source.has_files
    (path / "something").touch()
    assert CheckpointSource(spec_of(checkpoint, path), others).has_files


def test_a_disk_is_looked_at_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is asked every second whether it has the files, which may be on a network that hangs."""
    path = tmp_path / "here"
    shutil.copytree(checkpoint.path, path)
    others = Others(Lender(checkpoint, None, None))
    source = CheckpointSource(spec_of(checkpoint, path), others)
    assert source.has_files
    source.open()
    shutil.rmtree(path)
    monkeypatch.setattr(os, "scandir", lambda _: pytest.fail("it is looked at again"))
    assert source.has_files
    source.hurry(is_urgent=True)
    assert not others.asked


def test_without_another_machine_it_says_what_is_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    worker = ExpertWorker(spec_of(checkpoint, tmp_path / "nowhere"))
    with pytest.raises(WorkerStartError, match="nowhere: no such file or folder"):
        worker.load(checkpoint_modules(KEYS))


def test_only_files_of_the_checkpoint_are_lent(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (checkpoint.path.parent / "secret").write_text("secret")
    lender = Lender(checkpoint, None, None)
    for name in ("../secret", str(checkpoint.path.parent / "secret"), "experts", "nothing"):
        assert lender.lend(name, [(0, 6)], is_urgent=True) is None
    name = expert_file(0, 0)
    size = checkpoint.files[name].size
    assert lender.lend(name, [(0, size)], is_urgent=True) == [(checkpoint.path / name).read_bytes()]
    assert lender.lend(name, [(size - 1, size + 1)], is_urgent=True) is None


def test_what_nobody_waits_for_has_its_turn(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """At both ends; what requests wait for goes before."""
    lender, name = Lender(checkpoint, None, 1.0), expert_file(0, 0)
    assert lender.lend(name, [(0, 8)], is_urgent=False) is not None
    assert lender._bucket._free_at > lender._bucket._clock() + 5, "eight bytes take eight seconds"
    assert lender.lend(name, [(0, 8)], is_urgent=True) is not None
    source = CheckpointSource(spec_of(checkpoint, tmp_path / "nowhere", 5e6), Others(lender))
    for is_urgent, rate in ((True, None), (False, 5e6)):
        source.hurry(is_urgent)
        assert source._mirror is not None
        assert source._mirror._fetcher.bucket.bytes_per_second == rate
