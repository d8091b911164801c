"""Which part of a model is loaded, and what is said of what its processes took."""

import os
from pathlib import Path

import pytest

from benchmarks.arguments import LOADED_MODELS
from benchmarks.loading import (
    KEPT_SLACK,
    LOADING_SLACK,
    PUBLISHED,
    READ_SLACK,
    Part,
    largest_cut,
    model_bytes,
    row,
)
from benchmarks.process_usage import Usage, disk_rate, evict, usage
from moe_model.checkpoint.like import config_like
from moe_model.footprint import Footprint

SIZES = Footprint(shared_bytes=100, expert_bytes=10, num_modules=4, cache_bytes_per_token=1)
BASE = Usage(read=1000, from_disk=0, rss=5000, pss=4000, peak=6000)
PART = Part("worker 0", 2, 20, 20)


@pytest.mark.parametrize("name", LOADED_MODELS)
def test_as_many_layers_as_there_is_room_for(name: str) -> None:
    """True shapes but for the layers, and one more would be too many."""
    path = PUBLISHED / f"{name}.json"
    cut = largest_cut(path, 5_600_000_000)
    assert model_bytes(cut) <= 5_600_000_000
    assert model_bytes(config_like(path, cut.n_layers + 1)) > 5_600_000_000
    assert len(cut.moe_layers) >= 1


@pytest.mark.parametrize(
    ("usage", "missed"),
    [
        (Usage(1020, 0, 5020, 4000, 6000), ""),
        (Usage(1021 + READ_SLACK, 0, 5020, 4000, 6000), "read"),
        (Usage(1020, 0, 5021 + KEPT_SLACK, 4000, 6000), "kept"),
        (Usage(1020, 0, 5020, 4000, 5041 + LOADING_SLACK), "peak"),
    ],
)
def test_what_is_beyond_a_tiny_model_is_judged(usage: Usage, missed: str) -> None:
    """Read: the experts' bytes; kept: the same; at most: what is kept, two experts and 1 GiB."""
    found = row(2, PART, usage, BASE, SIZES)
    assert [name for name, is_met in found.is_met.items() if not is_met] == ([missed] if missed else [])


def test_a_process_is_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5 << 20))
    before = usage(os.getpid())
    evict(tmp_path)
    assert disk_rate(tmp_path) > 0
    after = usage(os.getpid())
    assert after.read - before.read >= 5 << 20
    assert after.peak >= after.rss >= after.pss > 0
