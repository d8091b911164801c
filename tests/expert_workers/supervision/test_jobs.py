import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from expert_workers.dispatch.routes import Address
from expert_workers.supervision.jobs import Expected, Jobs, Loaded, Timeouts, mismatch, next_number
from expert_workers.transports.base import FailureReason, WorkerFailureError
from expert_workers.transports.fleet import URGENT, Supply
from expert_workers.transports.in_process.fleet import LocalFleet
from expert_workers.transports.in_process.transport import InProcessTransport
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule, checkpoint_modules
from tests.expert_workers.fakes import TORCH, FakeSource, make_config, make_info, make_spec

CONFIG = make_config()
KEYS: list[ExpertKey] = [(0, 0), (0, 1), (1, 2)]
TRANSPORT = InProcessTransport()
EXPECTED = Expected(4, "us", "float32", "sums")


class ToldFleet(LocalFleet):
    """Notes what it was asked for, and says something else about its workers where it is told to."""

    def __init__(self) -> None:
        self.source = FakeSource(CONFIG, torch.float32, TORCH)
        super().__init__(make_spec(0), TRANSPORT, lambda spec: ExpertWorker(spec, self.source))
        self.asked: list[str] = []
        self.supplies: list[Supply] = []
        self.timeouts: list[float] = []
        self.changes: dict[str, Any] = {}

    def start(self, rank: int, node_id: str | None = None) -> None:
        self.asked.append("start" if node_id is None else f"start on {node_id}")
        super().start(rank, node_id)

    def load(
        self, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo:
        self.asked.append(
            " ".join(["load", *(f"{layer},{slot}" for layer, slot in sorted(m.key for m in modules))])
        )
        self.supplies.append(supply)
        self.timeouts.append(timeout)
        return super().load(rank, modules, timeout, supply)

    def describe(self, rank: int, timeout: float) -> WorkerInfo:
        return replace(super().describe(rank, timeout), **self.changes)

    def claim(self, rank: int, client: str, epoch: int, *, by_force: bool, timeout: float) -> None:
        self.asked.append(f"claim {epoch} {client} {by_force}")
        super().claim(rank, client, epoch, by_force=by_force, timeout=timeout)


@pytest.fixture
def fleet() -> ToldFleet:
    return ToldFleet()


class NotedLinks:
    """A Connector that notes the addresses it has links to."""

    def __init__(self) -> None:
        self.addresses: set[Address] = set()

    def connect(self, address: Address, timeout: float) -> None:
        self.addresses.add(address)

    def disconnect(self, address: Address) -> None:
        self.addresses.remove(address)


def make_jobs(fleet: ToldFleet, links: NotedLinks | None = None, **changes: Any) -> Jobs:
    return Jobs(fleet, replace(EXPECTED, **changes), Timeouts(), links or NotedLinks())


def test_who_does_not_run_is_started_claimed_and_connected(fleet: ToldFleet) -> None:
    links = NotedLinks()
    up = make_jobs(fleet, links).bring_up(1, frozenset(KEYS))
    assert fleet.asked == ["start", "claim 4 us False"]
    assert links.addresses == {up.address}
    assert (up.info.rank, up.info.keys, up.address.rank) == (1, (), 1)
    assert fleet.workers[1].describe().epoch == 4


def test_a_worker_that_is_fenced_has_its_link_taken_away(fleet: ToldFleet) -> None:
    links = NotedLinks()
    jobs = make_jobs(fleet, links)
    first, up = jobs.bring_up(0, frozenset(KEYS)), jobs.bring_up(1, frozenset(KEYS))
    jobs.fence(up.info, up.address)
    assert links.addresses == {first.address}
    assert set(fleet.workers) == {0}


def test_who_runs_already_keeps_what_is_known_and_nothing_else(fleet: ToldFleet) -> None:
    fleet.start(1)
    worker = fleet.workers[1]
    worker.load(checkpoint_modules([*KEYS, (1, 77)]))
    up = make_jobs(fleet, by_force=True).bring_up(1, frozenset([*KEYS, (1, 4)]))
    assert fleet.asked == ["start", "claim 4 us True"]
    assert fleet.workers[1] is worker
    assert up.info.keys == worker.describe().keys == tuple(KEYS)


def test_what_it_holds_sings_when_it_comes_up(fleet: ToldFleet) -> None:
    fleet.start(1)
    fleet.workers[1].load(checkpoint_modules(KEYS))
    assert make_jobs(fleet).bring_up(1, frozenset(KEYS)).canaries.keys() == set(KEYS)


def test_who_is_someone_else_is_refused(fleet: ToldFleet) -> None:
    fleet.changes = {"dtype": "bfloat16"}
    with pytest.raises(WorkerFailureError, match="worker 1: computes in bfloat16") as raised:
        make_jobs(fleet).bring_up(1, frozenset())
    assert raised.value.failure.reason is FailureReason.RAISED


def test_another_coordinator_s_worker_is_none_of_ours_whatever_it_is(fleet: ToldFleet) -> None:
    fleet.start(1)
    fleet.workers[1].claim("them", 5, by_force=True)
    fleet.changes = {"dtype": "bfloat16"}
    with pytest.raises(WorkerFailureError) as raised:
        make_jobs(fleet).bring_up(1, frozenset())
    assert raised.value.failure.reason is FailureReason.FENCED


def test_a_layer_after_the_other_is_loaded_and_told(fleet: ToldFleet) -> None:
    """So that a timeout is for so much, and a start shows how far it is."""
    told: list[int] = []
    jobs = Jobs(fleet, EXPECTED, Timeouts(), NotedLinks(), told.append)
    jobs.bring_up(0, frozenset(KEYS))
    mixed = [KEYS[0], KEYS[2], KEYS[1]]
    fleet.asked.clear()
    assert jobs.load(0, checkpoint_modules(mixed)).info.keys == tuple(KEYS)
    assert fleet.asked == ["load 0,0 0,1", "load 1,2"]
    assert told == [2, 1]


def test_who_is_bound_to_a_machine_is_started_there(fleet: ToldFleet) -> None:
    make_jobs(fleet).bring_up(1, frozenset(KEYS), "")
    assert fleet.asked[0] == "start on "


def test_a_load_in_parts_keeps_the_order_of_its_modules(fleet: ToldFleet) -> None:
    jobs = make_jobs(fleet)
    jobs.bring_up(0, frozenset(KEYS))
    fleet.asked.clear()
    jobs.load(0, checkpoint_modules(list(reversed(KEYS))), on_part=lambda _: True)
    assert fleet.asked[0] == "load 1,2"


def test_one_that_runs_on_another_machine_is_ended(fleet: ToldFleet) -> None:
    fleet.start(1)
    fleet.changes = {"node_id": "there"}
    with pytest.raises(WorkerFailureError, match="worker 1: ran on another machine") as raised:
        make_jobs(fleet).bring_up(1, frozenset(KEYS), "here")
    assert raised.value.failure.reason is FailureReason.DIED
    assert (fleet.asked[1], fleet.workers) == ("claim 4 us False", {})


def test_what_has_to_be_fetched_may_take_its_time_and_shows_how_far_it_is(fleet: ToldFleet) -> None:
    told: list[int] = []
    jobs = Jobs(fleet, EXPECTED, Timeouts(load=1.0, fetch=77.0), NotedLinks(), told.append)
    jobs.bring_up(0, frozenset(KEYS))
    jobs.load(0, checkpoint_modules(KEYS), is_whole=True, supply=Supply(is_far=True))
    assert told == [1, 2]
    assert fleet.timeouts == [77.0, 77.0]


def test_the_first_module_is_of_use_before_the_others_are_there(fleet: ToldFleet) -> None:
    jobs, parts = make_jobs(fleet), list[Loaded]()
    jobs.bring_up(0, frozenset(KEYS))
    fleet.asked.clear()

    def on_part(part: Loaded) -> bool:
        parts.append(part)
        return True

    loaded = jobs.load(0, checkpoint_modules(KEYS), on_part=on_part)
    assert fleet.asked == ["load 0,0", "load 0,1 1,2"]
    assert [part.info.keys for part in parts] == [tuple(KEYS[:1])]
    assert loaded.info.keys == tuple(KEYS)
    told = [set(part.canaries) for part in [*parts, loaded]]
    assert told == [{KEYS[0]}, {*KEYS[1:]}], "each sings once"


@pytest.mark.parametrize(
    ("number", "seconds", "following"),
    [(1, 0.0, 4), (8, 0.1, 32), (8, 1.0, 8), (8, 2.0, 4), (8, 100.0, 1), (1, 5.0, 1)],
)
def test_a_part_takes_about_a_second(number: int, seconds: float, following: int) -> None:
    assert next_number(number, seconds) == following


def test_the_fleet_is_told_who_may_lend_the_files(fleet: ToldFleet) -> None:
    jobs, supply = make_jobs(fleet), Supply((3, 4), is_urgent=False)
    jobs.bring_up(0, frozenset(KEYS))
    jobs.load(0, checkpoint_modules(KEYS), supply=supply)
    assert fleet.supplies == [supply, supply]


def test_what_is_not_wanted_any_more_is_not_loaded(fleet: ToldFleet) -> None:
    jobs = make_jobs(fleet)
    jobs.bring_up(0, frozenset(KEYS))
    assert jobs.load(0, checkpoint_modules(KEYS), on_part=lambda _: False).info.keys == tuple(KEYS[:1])
    fleet.source.broken = {KEYS[1]}
    jobs.drop(0, KEYS)
    fleet.asked.clear()
    loaded = jobs.load(0, checkpoint_modules(KEYS[::-1]), on_part=lambda _: False)
    assert len(loaded.info.keys) == 1


def test_what_is_loaded_sings_at_once(fleet: ToldFleet) -> None:
    jobs = make_jobs(fleet)
    jobs.bring_up(0, frozenset(KEYS))
    jobs.load(0, checkpoint_modules(KEYS[:1]))
    loaded = jobs.load(0, checkpoint_modules(KEYS))
    assert loaded.info.keys == tuple(KEYS)
    assert loaded.canaries.keys() == set(KEYS)
    assert jobs.drop(0, KEYS[:2]).keys == tuple(KEYS[2:])
    assert jobs.canary(0, KEYS[2:]).keys() == set(KEYS[2:])
    assert jobs.beat(0).keys == tuple(KEYS[2:])
    jobs.end(0)
    assert fleet.find() == frozenset()


def test_a_halt_does_not_wait_for_a_start_that_never_ends(
    fleet: ToldFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cluster's that hangs; after the halt none begins, and none is waited for, while that one hangs."""
    begun, go = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        assert go.wait(120)

    monkeypatch.setattr(fleet, "start", hang)
    jobs = make_jobs(fleet)
    with ThreadPoolExecutor(2) as executor:
        try:
            executor.submit(jobs.bring_up, 1, frozenset())
            assert begun.wait(30)
            executor.submit(jobs.halt, 0.01).result(20)
            refused = executor.submit(jobs.bring_up, 2, frozenset())
            with pytest.raises(WorkerFailureError, match="worker 2: is not started any more"):
                refused.result(20)
        finally:
            go.set()


def test_what_can_be_loaded_is_kept_and_the_first_that_cannot_is_named(fleet: ToldFleet) -> None:
    jobs = make_jobs(fleet)
    jobs.bring_up(0, frozenset(KEYS))
    fleet.source.broken = {KEYS[1]}
    loaded = jobs.load(0, checkpoint_modules(KEYS))
    assert loaded.info.keys == (KEYS[0], KEYS[2]) == tuple(loaded.canaries)
    assert loaded.failure is not None
    assert loaded.failure.message == "worker 0: file 1: is broken"
    with pytest.raises(WorkerFailureError, match="worker 0: file 1: is broken"):
        jobs.load(0, checkpoint_modules(KEYS[1:2]))


def test_all_or_nothing_is_loaded_where_that_is_asked_for(fleet: ToldFleet) -> None:
    jobs = make_jobs(fleet)
    jobs.bring_up(0, frozenset(KEYS))
    fleet.source.broken = {KEYS[1]}
    with pytest.raises(WorkerFailureError, match="worker 0: file 1: is broken"):
        jobs.load(0, checkpoint_modules(KEYS), is_whole=True)
    assert fleet.describe(0, 1.0).keys == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"rank": 4}, "worker 1: says it is worker 4"),
        ({"dtype": "bfloat16"}, "worker 1: computes in bfloat16, expected float32"),
        ({"fingerprint": "other"}, "worker 1: has loaded another checkpoint"),
        ({"fingerprint": "", "keys": ()}, ""),
    ],
)
def test_each_mismatch_is_named(change: dict[str, Any], message: str) -> None:
    info = make_info(**{"rank": 1, "fingerprint": "sums", "keys": tuple(KEYS), **change})
    assert mismatch(EXPECTED, 1, info) == message
    if "rank" not in change:
        assert mismatch(Expected(), 1, info) == ""
