"""What a fleet promises, kept by the one of objects and by the one of streams without Ray."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from expert_workers.transports.base import AnyTransport, FailureReason, WorkerFailureError
from expert_workers.transports.fleet import Fleet
from expert_workers.transports.in_process.fleet import LocalFleet
from expert_workers.transports.in_process.transport import InProcessTransport
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.wire import ExpertReply
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.versions.expert_versions import checkpoint_modules
from tests.expert_workers.fakes import TORCH, FakeSource, make_config, make_spec
from tests.expert_workers.stream_fakes import FakeMachine, StreamFleet, make_call, soon

CONFIG = make_config()
WAYS: dict[str, AnyTransport] = {"local": InProcessTransport(), "stream": StreamTransport()}


def make_empty(spec: WorkerSpec) -> ExpertWorker:
    source = FakeSource(CONFIG, torch.float32, TORCH)
    source.broken.add((1, 4))
    return ExpertWorker(spec, source)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def fleet(way: str) -> Iterator[Fleet]:
    if way == "local":
        fleet = LocalFleet(make_spec(0), WAYS[way], make_empty)
        yield fleet
        fleet.close()
    else:
        machine = FakeMachine(lambda rank: make_empty(make_spec(rank)))
        yield StreamFleet(machine)
        machine.end()


def test_a_worker_begins_empty_and_is_found(fleet: Fleet) -> None:
    assert fleet.find() == frozenset()
    fleet.start(3)
    fleet.start(0)
    assert fleet.find() == {0, 3}
    info = fleet.describe(3, 10.0)
    assert (info.rank, info.keys, info.epoch) == (3, (), 0)
    assert fleet.beat(3, "us", 10.0).pid == info.pid
    assert len(fleet.machines()) == 1


def test_what_is_loaded_is_held_until_it_is_unloaded(fleet: Fleet) -> None:
    fleet.start(0)
    info = fleet.load(0, checkpoint_modules([(0, 0), (1, 2)]), 10.0)
    assert info.keys == ((0, 0), (1, 2))
    assert info.num_bytes == 200
    said = fleet.canary(0, [(0, 0), (1, 2)], 10.0)
    assert said.keys() == {(0, 0), (1, 2)}
    assert not np.array_equal(said[0, 0], said[1, 2])
    assert fleet.unload(0, [(0, 0)], 10.0).keys == ((1, 2),)


def test_what_cannot_be_loaded_is_named_and_nothing_of_it_is_held(fleet: Fleet) -> None:
    fleet.start(2)
    with pytest.raises(WorkerFailureError, match=r"^worker 2: file 4: is broken$") as raised:
        fleet.load(2, checkpoint_modules([(0, 0), (1, 4)]), 10.0)
    assert raised.value.failure.reason is FailureReason.RAISED
    assert fleet.describe(2, 10.0).keys == ()


def test_calls_of_the_epoch_that_has_claimed_it_are_answered(fleet: Fleet, way: str) -> None:
    fleet.start(0)
    fleet.load(0, checkpoint_modules([(0, 0)]), 10.0)
    fleet.claim(0, "us", 3, by_force=False, timeout=10.0)
    assert fleet.describe(0, 10.0).epoch == 3
    link = WAYS[way].connect(0, fleet.endpoint(0, 10.0), 10.0)
    assert (link.rank, link.failure) == (0, None)
    call = make_call(1, width=CONFIG.d_model)
    good, bad = link.send(call._replace(epoch=3)), link.send(call._replace(call_id=2))
    WAYS[way].plane().wait([good, bad], soon())
    assert isinstance(good.outcome, ExpertReply)
    assert getattr(bad.outcome, "reason", None) is FailureReason.FENCED
    with pytest.raises(WorkerFailureError, match="epoch 2 is over") as raised:
        fleet.claim(0, "us", 2, by_force=True, timeout=10.0)
    assert raised.value.failure.reason is FailureReason.FENCED
    link.close()
    assert link.failure is not None
    assert getattr(link.send(call).outcome, "reason", None) is FailureReason.DIED


def test_who_was_fenced_is_another_one_afterwards(fleet: Fleet) -> None:
    fleet.start(0)
    fleet.load(0, checkpoint_modules([(0, 0)]), 10.0)
    info = fleet.describe(0, 10.0)
    fleet.fence(info)
    if 0 not in fleet.find():
        fleet.start(0)
    assert fleet.describe(0, 10.0).keys == ()


def test_who_was_ended_is_gone(fleet: Fleet) -> None:
    fleet.start(0)
    fleet.start(1)
    fleet.end([1, 7])
    assert fleet.find() == {0}
    with pytest.raises(WorkerFailureError, match=r"^worker 1: ") as raised:
        fleet.describe(1, 0.1)
    assert raised.value.failure.reason is FailureReason.DIED


class EndingFleet(LocalFleet):
    """Its workers end while they are asked."""

    def _worker(self, rank: int) -> ExpertWorker:
        worker = super()._worker(rank)
        self.end([rank])
        return worker


def test_a_worker_that_ends_while_it_is_claimed_is_gone() -> None:
    fleet = EndingFleet(make_spec(0), WAYS["local"], make_empty)
    fleet.start(0)
    with pytest.raises(WorkerFailureError, match="worker 0: is gone") as raised:
        fleet.claim(0, "client", 1, by_force=False, timeout=1.0)
    assert raised.value.failure.reason is FailureReason.DIED
