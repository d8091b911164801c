"""Experts in this process and on workers answer the same questions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.experts import ServedExperts, describe_workers, open_experts
from expert_workers.status import WorkerState
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import NoWorkersError
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog

ENGINE = EngineConfig(kernels="torch", num_threads=1)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(params=[0, 2], ids=["here", "on workers"])
def experts(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[ServedExperts]:
    workers = WorkersConfig(num_workers=request.param, replicas=2, transport="in-process")
    with open_experts(checkpoint, ENGINE, workers) as opened:
        opened.idle()
        yield opened


class Told:
    """Phases that keep what they are told."""

    def __init__(self) -> None:
        self.progressed: list[tuple[int, int]] = []

    def __call__(self, phase: str) -> None:
        """A phase begins."""

    def progress(self, done: int, total: int) -> None:
        self.progressed.append((done, total))

    def done(self) -> None:
        """A start is over."""


@pytest.mark.parametrize(("num_workers", "replicas", "copies"), [(0, 1, 1), (2, 1, 1), (2, 2, 2), (1, 2, 1)])
def test_a_start_says_how_much_is_read(
    num_workers: int, replicas: int, copies: int, checkpoint: Checkpoint
) -> None:
    """Each holder of an expert reads it."""
    told, total = Told(), copies * checkpoint.experts_bytes
    workers = WorkersConfig(num_workers=num_workers, replicas=replicas, transport="in-process")
    with open_experts(checkpoint, ENGINE, workers, phases=told):
        done = [each for each, _ in told.progressed]
        assert {all_ for _, all_ in told.progressed} == {total}
        assert max(done) == total
        assert len(set(done)) >= checkpoint.config.n_layers


def routing(num_tokens: int) -> Routing:
    ids_TK = torch.tensor([[n % 2, 2 + n % 2] for n in range(num_tokens)])
    return Routing(torch.full((num_tokens, 2), 0.5), ids_TK, torch.zeros(num_tokens, 5))


def test_an_answer_is_the_same_at_once_or_begun_and_finished(
    experts: ServedExperts, checkpoint: Checkpoint
) -> None:
    x_TD = torch.randn(3, checkpoint.config.d_model)
    with open_experts(checkpoint, ENGINE, WorkersConfig(num_workers=0)) as here:
        expected_TD = here.forward(0, x_TD, routing(3))
    first, second = experts.begin(0, x_TD, routing(3)), experts.begin(0, x_TD, routing(3))
    assert torch.equal(experts.finish(first), expected_TD)
    assert torch.equal(experts.finish(second), expected_TD)
    assert torch.equal(experts.forward(0, x_TD, routing(3)), expected_TD)
    experts.found()
    assert experts.missing_experts() == ()


def test_a_switch_to_other_columns_shows_at_once(experts: ServedExperts, checkpoint: Checkpoint) -> None:
    x_TD = torch.randn(4, checkpoint.config.d_model)
    before_TD = experts.forward(1, x_TD, routing(4))
    columns = Catalog.of_checkpoint(checkpoint.config).columns
    swapped = (columns[1][1], columns[1][0], columns[1][3], columns[1][2])
    experts.switch(Catalog((columns[0], swapped, *columns[2:])))
    ids_TK = torch.tensor([1, 0, 3, 2])[routing(4).expert_ids_TK]
    other = Routing(routing(4).weights_TK, ids_TK, torch.zeros(4, 4))
    assert torch.equal(experts.forward(1, x_TD, other), before_TD)


def test_workers_are_there_or_are_refused_by_name(experts: ServedExperts) -> None:
    topology = experts.topology()
    assert experts.answers_travel == bool(topology)
    assert experts.holders((0, 0)) == tuple(worker.rank for worker in topology)
    if not topology:
        assert experts.num_replicas == 0
        assert describe_workers(topology) == ["all experts run in the coordinator's process"]
        with pytest.raises(NoWorkersError):
            experts.scale(2, 60.0)
        return
    assert experts.num_replicas == 2
    assert {worker.state for worker in topology} == {WorkerState.READY}
    assert [line.split()[:3] for line in describe_workers(topology)] == [
        ["worker", str(worker.rank), "ready"] for worker in topology
    ]
    assert experts.scale(3, 60.0).num_workers == len(experts.topology()) == 3
