"""What a supervisor brings about while nothing fails: starts, changes of the number of workers, exchanges."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch

from expert_workers.remote_experts import RemoteExperts
from expert_workers.status import Scaled, WorkerState
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.errors import ClusterError, HaltedError, WorkerStartError
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule
from tests.expert_workers.supervised import (
    ALL,
    CATALOG,
    CONFIG,
    OPTIONS,
    RESTARTS,
    ROUTING,
    X_TD,
    Coordinator,
    World,
    supervised,
)
from tests.threads import no_thread_left

WAYS = pytest.mark.parametrize("is_local", [True, False], ids=["local", "stream"])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """No thread is left."""
    with no_thread_left():
        yield


@contextmanager
def elsewhere(coordinator: Coordinator, work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Runs what blocks on another thread, while this one dispatches all the time; gives its result."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        coordinator.until(future.done, coordinator.check_equal)
        yield future.result


@WAYS
@pytest.mark.parametrize(("num_workers", "replicas"), [(1, 1), (2, 1), (3, 2), (2, 5)])
def test_a_start_ends_with_every_expert_where_it_shall_be(
    is_local: bool, num_workers: int, replicas: int
) -> None:
    with supervised(num_workers, is_local=is_local, replicas=replicas) as (coordinator, _):
        assert coordinator.fleet.find() == set(range(num_workers))
        assert coordinator.num_holders(*range(num_workers)) == {min(num_workers, replicas)}
        assert coordinator.pool.missing_experts() == ()
        coordinator.check_equal()
        assert not coordinator.notes.losses


@WAYS
def test_a_file_that_cannot_be_loaded_ends_the_start_and_names_worker_and_reason(is_local: bool) -> None:
    world = World(broken={(1, 3)})
    coordinator = Coordinator(world, is_local=is_local)
    with pytest.raises(WorkerStartError, match=r"^worker [01]: file 3: is broken$"):
        coordinator.start(2)
    coordinator.close()
    world.machine.end()


def test_a_worker_that_does_not_answer_in_time_is_named() -> None:
    world = World()
    coordinator = Coordinator(world)
    world.machine.start(0)
    world.machine.start(1)
    world.machine.stop(1)
    with pytest.raises(WorkerStartError, match=r"^worker 1: not ready within 0.2 s$"):
        coordinator.supervisor.start(2, 0.2)
    world.machine.go(1)
    coordinator.until(lambda: coordinator.num_holders(0, 1) == {1})
    coordinator.close()
    world.machine.end()


def test_a_start_that_goes_on_loading_is_waited_for() -> None:
    """Its time begins anew as long as modules are loaded in it: here until the stopped worker goes on."""
    world = World()
    coordinator = Coordinator(world)
    for rank in range(2):
        world.machine.start(rank)
    world.machine.stop(1)
    asked = count()

    def num_loaded() -> int:
        number = next(asked)
        if number == 6:
            world.machine.go(1)
        return number

    coordinator.supervisor.start(2, 0.05, num_loaded)
    assert coordinator.num_holders(0, 1) == {1}
    assert next(asked) > 6
    coordinator.close()
    world.machine.end()


@WAYS
def test_more_workers_are_given_their_part_and_no_step_notices(is_local: bool) -> None:
    with supervised(2, is_local=is_local, replicas=2) as (coordinator, _):
        with elsewhere(coordinator, lambda: coordinator.supervisor.scale(4)) as result:
            scaled = result()
        assert isinstance(scaled, Scaled)
        assert (scaled.num_before, scaled.num_workers) == (2, 4)
        assert scaled.num_moved == sum(len(coordinator.held()[rank]) for rank in (2, 3)) > 0
        assert coordinator.fleet.find() == {0, 1, 2, 3}
        assert coordinator.num_holders(0, 1, 2, 3) <= {2, 3, 4}
        coordinator.until(lambda: coordinator.num_holders(0, 1, 2, 3) == {2}, coordinator.check_equal)
        assert coordinator.notes.moves == [scaled.num_moved]


@WAYS
def test_fewer_workers_hold_all_before_the_others_end_and_no_step_notices(is_local: bool) -> None:
    with supervised(4, is_local=is_local) as (coordinator, _):
        coordinator.check_equal()
        with elsewhere(coordinator, lambda: coordinator.supervisor.scale(2)) as result:
            scaled = result()
        assert (scaled.num_before, scaled.num_workers) == (4, 2)
        assert coordinator.fleet.find() == {0, 1}
        assert coordinator.workers().keys() == {0, 1}
        assert coordinator.num_holders(0, 1) == {1}
        num_calls = {rank: worker.calls for rank, worker in coordinator.pool.stats().workers.items()}
        coordinator.check_equal()
        for rank in (2, 3):
            assert coordinator.pool.stats().workers[rank].calls == num_calls[rank]
        assert not coordinator.notes.losses


def test_a_worker_that_came_back_before_it_had_left_stays() -> None:
    with supervised(3) as (coordinator, _), ThreadPoolExecutor(2) as executor:
        fewer = executor.submit(coordinator.supervisor.scale, 1)
        more = executor.submit(coordinator.supervisor.scale, 3)
        coordinator.until(lambda: fewer.done() and more.done(), coordinator.check_equal)
        coordinator.until(lambda: coordinator.num_holders(*coordinator.workers()) == {1})
        assert len(coordinator.workers()) in (1, 3)
        assert not coordinator.notes.losses


def with_version(module: ExpertModule) -> Catalog:
    columns = [list(layer) for layer in CATALOG.columns]
    columns[module.layer][module.expert] = module
    return Catalog(tuple(map(tuple, columns)))


NEW = ExpertModule(1, 7, 2, version=1)


@WAYS
def test_a_module_is_exchanged_without_a_pause(is_local: bool) -> None:
    with supervised(3, is_local=is_local, replicas=2) as (coordinator, _):
        with elsewhere(coordinator, lambda: coordinator.supervisor.prepare(NEW)):
            pass
        assert sum(NEW.key in held for held in coordinator.held().values()) == 2
        coordinator.pool.switch(with_version(NEW))
        assert coordinator.pool.missing_experts() == ()
        coordinator.check_equal(NEW)
        coordinator.supervisor.release([(1, 2)])
        coordinator.until(lambda: not any((1, 2) in held for held in coordinator.held().values()))
        coordinator.check_equal(NEW)


@WAYS
def test_a_module_that_cannot_be_loaded_changes_nothing(is_local: bool) -> None:
    with supervised(3, is_local=is_local, replicas=2) as (coordinator, world):
        before = coordinator.held()
        world.broken.add(NEW.key)
        with (
            elsewhere(coordinator, lambda: coordinator.supervisor.prepare(NEW)) as result,
            pytest.raises(WorkerStartError, match=r"^worker \d: file 7: is broken$"),
        ):
            result()
        coordinator.until(lambda: coordinator.held() == before)
        coordinator.check_equal()
        assert not coordinator.notes.losses
        world.broken.clear()
        with elsewhere(coordinator, lambda: coordinator.supervisor.prepare(NEW)):
            pass
        coordinator.pool.switch(with_version(NEW))
        coordinator.check_equal(NEW)


def test_modules_that_cannot_be_loaded_are_held_against_no_worker() -> None:
    with supervised(3, replicas=2) as (coordinator, world):
        for number in range(RESTARTS.max_failures + 1):
            broken = replace(NEW, slot=NEW.slot + 1 + number)
            world.broken.add(broken.key)
            with (
                elsewhere(coordinator, partial(coordinator.supervisor.prepare, broken)) as result,
                pytest.raises(WorkerStartError, match=r"is broken$"),
            ):
                result()
            coordinator.until(lambda: not any(w.is_busy for w in coordinator.workers().values()))
        with elsewhere(coordinator, lambda: coordinator.supervisor.prepare(NEW, timeout=5.0)) as result:
            result()
        assert {worker.policy.next_at for worker in coordinator.workers().values()} == {0.0}


def test_what_was_prepared_and_not_used_is_dropped() -> None:
    with supervised(2) as (coordinator, _):
        with elsewhere(coordinator, lambda: coordinator.supervisor.prepare(NEW)):
            pass
        coordinator.supervisor.release([NEW.key])
        coordinator.until(lambda: not any(NEW.key in held for held in coordinator.held().values()))
        assert coordinator.num_holders(0, 1) == {1}


def test_experts_that_are_asked_for_most_get_another_holder() -> None:
    options = replace(OPTIONS, rebalance_interval=0.2, redundant=2)
    with supervised(3, options=options) as (coordinator, _):
        num_rows = 2000
        ids_TK = torch.full((num_rows, 1), 3)
        routing = Routing(torch.ones(num_rows, 1), ids_TK, torch.zeros(num_rows, CONFIG.n_experts))
        x_TD = torch.randn(num_rows, CONFIG.d_model)

        def work() -> None:
            coordinator.pool.forward(1, x_TD, routing)

        def num_holders() -> int:
            return sum((1, 3) in held for held in coordinator.held().values())

        coordinator.until(lambda: num_holders() == 3, work)
        coordinator.check_equal()


def test_a_step_calls_the_pool_itself() -> None:
    """For every layer of every step: a call in between would be paid for each of them."""
    with supervised(1) as (coordinator, _):
        experts = RemoteExperts(coordinator.pool, coordinator.supervisor, lambda: None)
        assert experts.begin == coordinator.pool.begin
        assert experts.finish == coordinator.pool.finish
        assert experts.forward == coordinator.pool.forward


def test_the_topology_says_which_worker_holds_what() -> None:
    with supervised(2) as (coordinator, world):
        experts = RemoteExperts(coordinator.pool, coordinator.supervisor, lambda: None)
        for layer in range(2):
            experts.forward(layer, X_TD, ROUTING)
        records = experts.topology()
        assert [record.rank for record in records] == [0, 1]
        assert {record.state for record in records} == {WorkerState.READY}
        assert [record.pid for record in records] == [world.machine.pid(rank) for rank in (0, 1)]
        held = [{(layer, e) for layer, each in r.experts.items() for e in each} for r in records]
        assert held[0] | held[1] == ALL
        assert not held[0] & held[1]
        assert sum(record.routed_rows for record in records) == 36
        assert sum(record.num_bytes for record in records) == 100 * len(ALL)
        world.machine.restarts = False
        world.machine.kill(1)
        coordinator.until(lambda: experts.topology()[1].state is WorkerState.LOST)
        record = experts.topology()[1]
        assert (record.pid, record.num_losses, record.experts) == (0, 1, {})
        assert record.last_loss.startswith("worker 1: its stream ")


def test_the_first_certificate_to_end_counts_this_process_s_or_a_worker_s() -> None:
    with supervised(2) as (coordinator, _):
        end_of = partial(RemoteExperts, coordinator.pool, coordinator.supervisor, lambda: None, 1)
        assert end_of().certificate_end is None
        assert end_of(3e9).certificate_end == 3e9
        for worker, end in zip(coordinator.supervisor.workers(), (2e9, 4e9), strict=True):
            assert worker.info is not None
            worker.info = replace(worker.info, certificate_end=end)
        assert end_of().certificate_end == end_of(3e9).certificate_end == 2e9
        assert end_of(1e9).certificate_end == 1e9


def test_workers_that_run_already_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with supervised(2) as (first, world):
        workers = [world.machine.worker(rank) for rank in (0, 1)]
        held = first.held()
        first.close()
        monkeypatch.setattr(ExpertWorker, "load", lambda self, modules: pytest.fail("nothing is loaded"))
        second = Coordinator(world, epoch=2)
        # Until they have seen that the first one is gone, they are its own.
        second.until(lambda: not any(world.machine.server(rank).num_links for rank in (0, 1)))
        second.start(2)
        assert [world.machine.worker(rank) for rank in (0, 1)] == workers
        assert second.held() == held
        second.check_equal()
        second.close()


class Blocked(World):
    """A world in which a load is under way until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go, self.blocks = threading.Event(), threading.Event(), False

    def make_worker(self, spec: WorkerSpec) -> ExpertWorker:
        worker = super().make_worker(spec)
        load = worker.load

        def blocked(modules: Sequence[ExpertModule]) -> None:
            if self.blocks:
                self.begun.set()
                assert self.go.wait(30)
            load(modules)

        worker.load = blocked  # type: ignore[method-assign]
        return worker


CHANGES = pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda supervisor: supervisor.scale(4), id="scale"),
        pytest.param(lambda supervisor: supervisor.prepare(NEW), id="prepare"),
        pytest.param(lambda supervisor: supervisor.start(4, 60.0), id="start"),
    ],
)


@CHANGES
def test_a_change_that_is_under_way_ends_when_it_is_closed(change: Callable[[Supervisor], object]) -> None:
    """The caller that waits is told at once, and not when the load is over."""
    world = Blocked()
    coordinator = Coordinator(world)
    with ThreadPoolExecutor(1) as executor:
        try:
            coordinator.start(2)
            world.blocks = True
            waiting = executor.submit(change, coordinator.supervisor)
            coordinator.until(world.begun.is_set)
            assert not coordinator.supervisor.close(0.0), "the load goes on"
            with pytest.raises(HaltedError):
                waiting.result(30)
        finally:
            world.go.set()
            coordinator.close()
            world.machine.end()


@CHANGES
def test_a_change_after_the_close_is_refused_at_once(change: Callable[[Supervisor], object]) -> None:
    with supervised(2) as (coordinator, _):
        coordinator.supervisor.close()
        with pytest.raises(HaltedError):
            change(coordinator.supervisor)


def test_a_start_ends_when_the_cluster_is_gone() -> None:
    """Workers that cannot be started any more are not waited for."""
    looking = replace(OPTIONS, health=HealthOptions(beat_interval=0, canary_interval=0, check_interval=0.02))
    world = Blocked()
    world.blocks = True
    coordinator = Coordinator(world, looking)
    coordinator.told.is_gone = True
    try:
        with pytest.raises(ClusterError, match="the head is gone"):
            coordinator.start(2)
    finally:
        world.go.set()
        coordinator.close()
        world.machine.end()
