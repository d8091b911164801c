"""What counts as whole, as restored, and as a loss."""

import os
import time
from collections.abc import Iterator
from typing import cast

import pytest

from chaos.scenario import Setup
from chaos.stage import wanted_now
from chaos.watch import Look, Wanted, Watch, look
from expertmesh import ControlClient
from moe_model.errors import ConfigError, WorldError
from tests.chaos_engine.cluster import LOST, Cluster, worker
from tests.chaos_engine.victims import victim

WANTED = Wanted(workers=2, experts=2, replicas=2)


def test_a_whole_worker_is_ready_and_runs() -> None:
    with victim() as process:
        workers = [worker(0), worker(1, state=LOST), worker(2, pid=process.pid)]
        assert look(workers, 0.0).whole == {0, 2}
        process.kill()
        process.wait()
        assert look(workers, 0.0).whole == {0}, "whatever the server still believes"


def test_another_machines_worker_is_taken_at_the_servers_word() -> None:
    assert look([worker(0, pid=1 << 30, host="192.0.2.1")], 0.0).whole == {0}
    assert look([worker(0, pid=0)], 0.0).whole == {0}, "a server without processes"


@pytest.mark.parametrize(
    ("workers", "restored"),
    [
        ([worker(0), worker(1)], True),
        ([worker(0), worker(1, state=LOST)], False),
        ([worker(0)], False),
        ([worker(0), worker(1), worker(2)], False),
        ([worker(0, [0]), worker(1)], False),
        ([worker(0, [0]), worker(1, [0])], False),
        ([], False),
    ],
)
def test_restored_is_as_many_workers_and_as_many_holders(workers: list[object], restored: bool) -> None:
    assert look(workers, 0.0).is_restored(WANTED) is restored  # type: ignore[arg-type]


def test_what_a_scenario_needs() -> None:
    now = look([worker(0), worker(1)], 0.0)
    assert wanted_now(now, Setup(2, 2, 2)) == wanted_now(now, Setup()) == WANTED
    for broken, setup, said in (
        (look([], 0.0), Setup(), "of 0 expert workers 0 are ready"),
        (look([worker(0), worker(1, state=LOST)], 0.0), Setup(), "of 2 expert workers 1 are ready"),
        (now, Setup(workers=3), "needs 3 expert workers, the server has 2"),
        (now, Setup(replicas=3), "needs each expert on 3 workers, one is on 2"),
        (now, Setup(max_replicas=1), "needs experts on 1 workers, each is on 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            wanted_now(broken, setup)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(worker(0), worker(1))


@pytest.fixture
def watch(cluster: Cluster) -> Iterator[Watch]:
    watch = Watch(cast(ControlClient, cluster), look(cluster.workers, 0.0), WANTED)
    watch.start()
    yield watch
    watch.close()


def test_it_sees_that_all_is_restored(cluster: Cluster, watch: Watch) -> None:
    began = time.monotonic()
    assert watch.wait_restored(began, 10.0) is not None
    cluster.workers[1] = worker(1, state=LOST)
    lost = time.monotonic()
    assert watch.wait_restored(lost, 0.3) is None
    assert watch.restored_since(lost) is None
    cluster.workers[1] = worker(1)
    seen = watch.wait_restored(lost, 10.0)
    assert seen is not None
    assert seen > lost
    assert watch.restored_since(lost) == seen, "the first time counts"


def test_it_counts_losses_also_of_workers_that_leave(cluster: Cluster, watch: Watch) -> None:
    def seen() -> None:
        assert watch.wait_restored(time.monotonic(), 10.0) is not None

    cluster.workers[1] = worker(1, losses=2)
    seen()
    assert watch.num_losses == 2
    cluster.workers[1] = worker(1, losses=0)
    seen()
    cluster.workers[1] = worker(1, losses=1)
    seen()
    assert watch.num_losses == 3


def test_a_server_that_is_away_is_not_restored_and_loses_nobody(cluster: Cluster, watch: Watch) -> None:
    cluster.workers[1] = worker(1, losses=2)
    assert watch.wait_restored(time.monotonic(), 10.0) is not None
    cluster.is_away = True
    assert watch.wait_restored(time.monotonic(), 0.3) is None
    cluster.is_away = False
    assert watch.wait_restored(time.monotonic(), 10.0) is not None
    assert watch.num_losses == 2


def test_more_workers_may_be_wanted(cluster: Cluster, watch: Watch) -> None:
    watch.wanted = Wanted(3, 2, 2)
    assert watch.wait_restored(time.monotonic(), 0.3) is None
    cluster.workers.append(worker(2))
    assert watch.wait_restored(time.monotonic(), 10.0) is not None


def test_a_watch_that_breaks_says_so(cluster: Cluster, watch: Watch) -> None:
    cluster.workers = cast("list[object]", [None])  # type: ignore[assignment]
    with pytest.raises(WorldError, match="cannot be watched any more: AttributeError"):
        watch.wait_restored(time.monotonic(), 10.0)


def test_a_look_at_nothing() -> None:
    assert Look(0.0).replicas == 0
    assert os.getpid() in look([worker(0)], 0.0).pids.values()
