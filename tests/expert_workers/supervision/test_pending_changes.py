import pytest

from expert_workers.dispatch.routes import Address
from expert_workers.status import Scaled
from expert_workers.supervision.pending_changes import PendingChange, PendingChanges
from expert_workers.supervision.worker_state import SupervisedWorker
from moe_model.errors import WorkerStartError
from moe_model.layers.dispatch import ExpertKey
from tests.expert_workers.fakes import make_config, make_worker, placed

WORKER = make_worker(make_config(), placed(2, 5, 1), 0)
A, B, C = (0, 0), (0, 1), (1, 0)
ERROR = WorkerStartError("worker 1: no")


def ready(rank: int, *held: ExpertKey) -> SupervisedWorker:
    return SupervisedWorker(rank, address=Address(rank, 1, ""), held=frozenset(held))


def test_who_waits_is_told_when_all_is_as_it_shall_be() -> None:
    changes, change = PendingChanges(), PendingChange(num_before=1)
    changes.add(change)
    changes.moved(2)
    changes.moved(1)
    wanted = {0: frozenset([A]), 1: frozenset([A, B])}
    assert changes.settle([ready(0, A), ready(1, B)], wanted) == []
    assert changes.settle([ready(0, A), SupervisedWorker(1)], wanted) == []
    leaving = ready(2)
    leaving.is_leaving = True
    assert changes.settle([ready(0, A), ready(1, A, B), leaving], wanted) == []
    assert not change.future.done()
    assert changes.settle([ready(0, A), ready(1, A, B)], wanted) == [change]
    scaled = change.future.result(0)
    assert scaled == Scaled(num_before=1, num_workers=2, num_moved=3, seconds=scaled.seconds)
    assert 0 <= scaled.seconds < 60
    assert changes.settle([ready(0, A), ready(1, A, B)], wanted) == []


def test_any_failure_ends_a_start_and_nothing_else() -> None:
    changes, start, other = PendingChanges(), PendingChange(is_start=True), PendingChange()
    changes.add(other)
    assert not changes.is_starting
    changes.add(start)
    assert changes.is_starting
    assert changes.fail_start(ERROR)
    assert not changes.is_starting
    assert not changes.fail_start(ERROR), "there is none any more"
    with pytest.raises(WorkerStartError, match="worker 1: no"):
        start.future.result(0)
    assert changes.settle([ready(0)], {}) == [other]


def test_a_load_that_fails_ends_those_whose_modules_it_was_to_load() -> None:
    changes = PendingChanges()
    failed, other = PendingChange(keys=frozenset([A])), PendingChange(keys=frozenset([B]))
    scaling = PendingChange()
    for change in (failed, other, scaling):
        changes.add(change)
    assert changes.fail_new(frozenset([A, C]), ERROR) == {A}
    with pytest.raises(WorkerStartError):
        failed.future.result(0)
    assert changes.fail_new(frozenset([C]), ERROR) == frozenset()
    assert changes.settle([ready(0, B)], {}) == [other, scaling]


def test_who_is_lost_is_waited_for_until_others_have_its_part() -> None:
    changes, change, lost = PendingChanges(), PendingChange(), SupervisedWorker(1, lost_at=1.0)
    changes.add(change)
    assert changes.settle([ready(0, A), lost], {0: frozenset([A]), 1: frozenset([B])}) == []
    assert changes.settle([ready(0, A), lost], {0: frozenset([A, B])}) == []
    assert changes.settle([ready(0, A, B), lost, SupervisedWorker(2)], {0: frozenset([A, B])}) == []
    assert changes.settle([ready(0, A, B), lost], {0: frozenset([A, B])}) == [change]
    assert change.future.result(0).num_workers == 1
