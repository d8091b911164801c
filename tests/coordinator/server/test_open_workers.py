"""Workers as they are asked for: the wish is kept, and met as soon as it can be."""

from pathlib import Path

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.open_workers import open_workers
from expert_workers.status import Workers
from moe_model.checkpoint.reader import Checkpoint

ENGINE = EngineConfig(kernels="torch", num_threads=1)


def copies(experts: Workers) -> set[int]:
    """Of each expert of each layer, on how many workers it is."""
    held: dict[tuple[int, int], int] = {}
    for worker in experts.topology():
        for layer, ids in worker.experts.items():
            for expert in ids:
                held[layer, expert] = held.get((layer, expert), 0) + 1
    return set(held.values())


def test_replicas_are_not_frozen_by_how_many_workers_there_were_first(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = WorkersConfig(num_workers=1, replicas=2, transport="in-process")
    with open_workers(Checkpoint.open(tiny_checkpoint), ENGINE, workers) as experts:
        assert "2 replicas asked for, 1 fit on 1 workers" in caplog.text
        assert (len(experts.topology()), experts.num_replicas, copies(experts)) == (1, 1, {1})
        experts.scale(3, 60)
        assert (len(experts.topology()), experts.num_replicas) == (3, 2)
        assert min(copies(experts)) == 2, "some are not dropped yet from where they were"


def test_redundant_experts_come_with_the_workers(tiny_checkpoint: Path) -> None:
    workers = WorkersConfig(num_workers=1, redundant_experts=1, transport="in-process")
    with open_workers(Checkpoint.open(tiny_checkpoint), ENGINE, workers) as experts:
        assert copies(experts) == {1}
        experts.scale(2, 60)
        assert copies(experts) == {1, 2}
