"""Supervisor and pool over machines that come and go: workers follow them, and no call is lost."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from expert_workers.dispatch.options import OnLoss
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.worker_state import Keys
from expert_workers.transports.fleet import URGENT, Machine, Supply
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo
from moe_model.errors import BoundWorkersError
from moe_model.versions.expert_versions import ExpertModule
from tests.expert_workers.supervised import ALL, OPTIONS, Coordinator, ToldFleet, World, supervised

FOLLOWING = replace(
    OPTIONS,
    workers_per_node=1,
    has_machines=True,
    drop_after=0.05,
    health=HealthOptions(beat_interval=0, canary_interval=0, check_interval=0.02, check_timeout=5.0),
)
COUNTED = replace(FOLLOWING, workers_per_node=0)


def places(coordinator: Coordinator) -> dict[str, int]:
    """By machine, the rank of the worker there that holds something."""
    found = {}
    for rank, worker in coordinator.workers().items():
        if worker.held and worker.info is not None:
            found[worker.info.node_id] = rank
    return found


def leave(world: World, node_id: str) -> None:
    world.machine.machines = tuple(
        replace(machine, is_leaving=machine.is_leaving or machine.node_id == node_id)
        for machine in world.machine.machines
    )


def test_each_machine_has_its_worker_and_one_that_joins_gets_another() -> None:
    with supervised(0, options=FOLLOWING, machines="ab") as (coordinator, world):
        assert places(coordinator) == {"a": 0, "b": 1}
        world.machine.machines += (Machine("c"),)
        coordinator.until(lambda: places(coordinator) == {"a": 0, "b": 1, "c": 2}, coordinator.check_equal)


@pytest.mark.parametrize("options", [FOLLOWING, COUNTED], ids=["per machine", "in all"])
def test_a_machine_that_leaves_is_rid_of_its_worker_and_no_call_is_lost(options: object) -> None:
    with supervised(2, options=options, machines="ab") as (coordinator, world):  # type: ignore[arg-type]
        world.machine.machines += (Machine("c"),)
        if options is FOLLOWING:
            coordinator.until(lambda: "c" in places(coordinator), coordinator.check_equal)
        leave(world, "a")
        coordinator.until(lambda: "a" not in world.machine.node_ids_in_use(), coordinator.check_equal)
        coordinator.until(lambda: places(coordinator).keys() == {"b", "c"}, coordinator.check_equal)
        coordinator.until(
            lambda: coordinator.num_holders(*places(coordinator).values()) == {1}, coordinator.check_equal
        )
        assert not coordinator.notes.losses


def test_the_last_machine_keeps_its_worker_until_another_is_there() -> None:
    with supervised(1, options=FOLLOWING, machines="a") as (coordinator, world):
        leave(world, "a")
        coordinator.until(lambda: coordinator.workers()[0].is_leaving)
        coordinator.check_equal()
        world.machine.machines += (Machine("b"),)
        coordinator.until(lambda: world.machine.node_ids_in_use() == {"b"}, coordinator.check_equal)
        assert not coordinator.notes.losses


def test_a_machine_that_is_gone_takes_its_worker_along() -> None:
    with supervised(0, options=FOLLOWING, replicas=2, machines="abc") as (coordinator, world):
        world.machine.restarts = False
        gone = places(coordinator)["b"]
        world.machine.kill(gone)
        world.machine.machines = (Machine("a"), Machine("c"))
        coordinator.until(lambda: gone not in coordinator.workers(), coordinator.check_equal)
        coordinator.until(lambda: coordinator.num_holders(0, 2) == {2}, coordinator.check_equal)


def test_their_number_is_not_to_be_told() -> None:
    with (
        supervised(0, options=FOLLOWING, machines="ab") as (coordinator, _),
        pytest.raises(BoundWorkersError, match="follow the machines"),
    ):
        coordinator.supervisor.scale(3)


def test_a_worker_has_rows_as_soon_as_its_first_expert_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second part of its load is held up."""
    goes, num_loads, load = threading.Event(), 0, ExpertWorker.load

    def slow(worker: ExpertWorker, modules: Sequence[ExpertModule]) -> None:
        nonlocal num_loads
        if worker.spec.rank == 1:
            num_loads += 1
            if num_loads > 1:
                assert goes.wait(60)
        load(worker, modules)

    monkeypatch.setattr(ExpertWorker, "load", slow)
    with supervised(0, options=FOLLOWING, machines="a") as (coordinator, world):
        world.machine.machines += (Machine("b"),)
        try:
            coordinator.until(lambda: num_loads == 2, coordinator.check_equal)
            coordinator.until(lambda: len(coordinator.held().get(1, ())) == 1, coordinator.check_equal)
            rows = world.machine.worker(1).describe
            coordinator.until(lambda: rows().routed_rows > 0, coordinator.check_equal)
            assert coordinator.workers()[1].is_busy
        finally:
            goes.set()
        coordinator.until(lambda: coordinator.num_holders(0, 1) == {1}, coordinator.check_equal)


def test_a_load_ends_when_its_machine_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    goes, loads, load = threading.Event(), list[Sequence[ExpertModule]](), ExpertWorker.load

    def slow(worker: ExpertWorker, modules: Sequence[ExpertModule]) -> None:
        if worker.spec.rank == 1:
            loads.append(modules)
            assert goes.wait(60)
        load(worker, modules)

    monkeypatch.setattr(ExpertWorker, "load", slow)
    with supervised(0, options=FOLLOWING, machines="a") as (coordinator, world):
        try:
            world.machine.machines += (Machine("b"),)
            coordinator.until(lambda: len(loads) == 1)
            leave(world, "b")
            coordinator.until(lambda: coordinator.workers()[1].is_leaving)
        finally:
            goes.set()
        coordinator.until(lambda: world.machine.node_ids_in_use() == {"a"}, coordinator.check_equal)
        assert len(loads) == 1
        assert coordinator.held() == {0: ALL}


def test_a_load_is_begun_anew_once_requests_wait_for_some_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker loads at its leisure what others hold; then these are gone."""
    goes, loads, load = threading.Event(), list[tuple[Keys, bool]](), ToldFleet.load

    def slow(
        fleet: ToldFleet, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo:
        if rank == 2:
            loads.append((frozenset(module.key for module in modules), supply.is_urgent))
            if len(loads) == 1:
                assert goes.wait(60)
        return load(fleet, rank, modules, timeout, supply)

    monkeypatch.setattr(ToldFleet, "load", slow)
    options = replace(FOLLOWING, on_loss=OnLoss.RELOAD)
    with supervised(0, options=options, replicas=2, machines="ab") as (coordinator, world):
        world.machine.restarts = False
        world.machine.machines += (Machine("c"),)
        try:
            coordinator.until(lambda: len(loads) == 1, coordinator.check_equal)
            for rank in (0, 1):
                world.machine.kill(rank)
            coordinator.until(lambda: coordinator.workers()[2].is_needed)
        finally:
            goes.set()
        coordinator.until(lambda: coordinator.held()[2] == ALL)
        coordinator.check_equal()
        assert [is_urgent for _, is_urgent in loads] == [False] + [True] * (len(loads) - 1)
