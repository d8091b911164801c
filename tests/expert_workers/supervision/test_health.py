import numpy as np

from expert_workers.dispatch.routes import Address
from expert_workers.supervision.health import Health, HealthOptions, odd_one, why_changed
from expert_workers.supervision.worker_state import SupervisedWorker
from tests.expert_workers.fakes import make_config, make_worker, placed

WORKER = make_worker(make_config(), placed(2, 5, 1), 0)
OPTIONS = HealthOptions(beat_interval=1.0, canary_interval=10.0)
HELD = ((0, 0), (0, 1))
SAID = {key: np.array([1.0, 2.0, 3.0], np.float32) for key in HELD}


def worker(rank: int = 0) -> SupervisedWorker:
    return SupervisedWorker(rank, address=Address(rank, 1, ""), held=frozenset(HELD), canaries=dict(SAID))


def test_each_is_asked_once_in_an_interval_and_not_before_it_has_answered() -> None:
    health, workers = Health(OPTIONS), [worker(0), worker(1)]
    assert health.due_heartbeats(workers, 0.0) == []
    assert health.due_heartbeats(workers, 0.9) == []
    assert health.due_heartbeats(workers, 1.0) == workers
    assert health.due_heartbeats(workers, 5.0) == []
    health.heartbeat_done(1)
    assert health.due_heartbeats(workers, 5.0) == [workers[1]]
    health.heartbeat_done(1)
    assert health.due_heartbeats(workers, 5.9) == []
    assert health.due_heartbeats(workers, 6.0) == [workers[1]]


def test_a_worker_that_is_not_there_is_not_asked() -> None:
    health, workers = Health(OPTIONS), [SupervisedWorker(0)]
    health.due_heartbeats(workers, 0.0)
    assert health.due_heartbeats(workers, 100.0) == []


def test_an_interval_of_0_is_never() -> None:
    health, workers = Health(HealthOptions(beat_interval=0, canary_interval=0)), [worker()]
    for now in (0.0, 100.0):
        assert health.due_heartbeats(workers, now) == []
        assert health.due_canaries(workers, now) == []


def test_canaries_are_asked_of_who_has_time_for_them() -> None:
    health, workers = Health(OPTIONS), [worker(0), worker(1), worker(2)]
    workers[1].is_busy = True
    workers[2].canaries.clear()
    assert health.due_canaries(workers, 0.0) == []
    assert health.due_canaries(workers, 10.0) == [(workers[0], list(HELD))]
    workers[1].is_busy = False
    assert health.due_canaries(workers, 19.9) == [(workers[1], list(HELD))]
    assert health.due_canaries(workers, 20.0) == [(workers[0], list(HELD))]


def test_one_bit_is_a_change_and_what_was_not_heard_before_is_none() -> None:
    one = worker()
    assert why_changed(one, SAID) == ""
    assert why_changed(one, {**SAID, (1, 7): np.zeros(3, np.float32)}) == ""
    flipped = SAID[0, 1].copy()
    flipped.view(np.uint32)[1] ^= 1
    assert (
        why_changed(one, {**SAID, (0, 1): flipped})
        == "module 1 of layer 0 computes something else than when it was loaded"
    )


def test_what_is_not_a_number_is_a_change() -> None:
    one = worker()
    assert why_changed(one, {(0, 0): np.full(3, np.nan, np.float32)})
    assert odd_one(one, {(0, 0): np.full(3, np.nan, np.float32)}, [one, worker(1)])


def test_two_processes_may_differ_by_rounding_only() -> None:
    one, other = worker(0), worker(1)
    assert odd_one(one, {key: said * 1.001 for key, said in SAID.items()}, [one, other]) == ""
    odd = odd_one(one, {**SAID, (0, 1): -SAID[0, 1]}, [one, other])
    assert odd == "module 1 of layer 0 computes something else than worker 1's"
    other.address = None
    assert odd_one(one, {**SAID, (0, 1): -SAID[0, 1]}, [one, other]) == ""


def test_the_cluster_is_looked_after_one_time_after_the_other() -> None:
    health = Health(HealthOptions(check_interval=2.0))
    assert health.is_check_due(0.0)
    assert not health.is_check_due(100.0)
    health.check_done("", 100.0)
    assert not health.is_check_due(101.9)
    assert health.is_check_due(102.0)


def test_a_check_that_is_not_answered_counts_as_a_bad_one_each_time_that_it_could_have_been() -> None:
    health = Health(HealthOptions(check_interval=2.0, check_timeout=5.0))
    assert health.is_check_due(0.0)
    assert [health.why_gone(now) for now in (4.9, 5.0, 9.9)] == ["", "", ""]
    assert not health.is_check_due(9.9), "one is under way"
    assert health.why_gone(10.0) == "the head of the Ray cluster does not answer"
    health.check_done("", 11.0)
    assert health.why_gone(100.0) == "", "it was answered, if late, and nothing is asked now"
    assert health.is_check_due(100.0)
    assert health.why_gone(105.0) == ""
    health.check_done("the head is gone", 106.0)
    assert health.why_gone(106.0) == "the head is gone"


def test_the_cluster_is_gone_when_it_was_twice_in_a_row() -> None:
    health = Health(HealthOptions(check_interval=2.0))
    found = []
    for problem in ("gone", "", "gone", "gone", "still gone"):
        health.check_done(problem, 0.0)
        found.append(health.why_gone(0.0))
    assert found == ["", "", "", "gone", "still gone"]
    assert not Health(HealthOptions(check_interval=0)).is_check_due(100.0)
