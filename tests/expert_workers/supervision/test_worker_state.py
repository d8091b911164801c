from expert_workers.dispatch.routes import Address
from expert_workers.status import WorkerState, WorkerStatus
from expert_workers.supervision.restart_policy import RestartPolicy
from expert_workers.supervision.worker_state import Keys, SupervisedWorker, Surplus
from expert_workers.transports.base import Failure, FailureReason
from moe_model.layers.dispatch import ExpertKey
from tests.expert_workers.fakes import make_config, make_info, make_worker, placed

CONFIG = make_config()
WORKER = make_worker(CONFIG, placed(2, 5, 1), 0)
A, B = (0, 0), (0, 1)
NONE: Keys = frozenset()


def ready(rank: int, *held: ExpertKey) -> SupervisedWorker:
    return SupervisedWorker(rank, address=Address(rank, 1, ""), held=frozenset(held))


def keys(*found: ExpertKey) -> Keys:
    return frozenset(found)


def test_the_state_is_told_by_what_is_known() -> None:
    address = Address(0, 1, "")
    broken = RestartPolicy()
    for _ in range(10):
        broken.failed(0.0)
    expected = {
        WorkerState.STARTING: SupervisedWorker(0),
        WorkerState.READY: SupervisedWorker(0, address=address),
        WorkerState.INCOMPLETE: SupervisedWorker(0, address=address, missing=keys(A)),
        WorkerState.LOST: SupervisedWorker(0, lost_at=1.0),
        WorkerState.BROKEN: SupervisedWorker(0, lost_at=1.0, policy=broken),
        WorkerState.DRAINING: SupervisedWorker(0, address=address, is_leaving=True),
    }
    assert {state: member.state for state, member in expected.items()} == {each: each for each in WorkerState}


def test_who_lacks_something_it_shall_hold_is_incomplete_until_it_has_it() -> None:
    member = ready(0, A)
    member.note_wish(keys(A, B))
    member.problem = "it cannot be read"
    assert (member.missing, member.state) == (keys(B), WorkerState.INCOMPLETE)
    member.note_wish(keys(A, B))
    assert member.problem, "still"
    member.held = keys(A, B)
    member.note_wish(keys(A, B))
    assert (member.missing, member.problem, member.state) == (NONE, "", WorkerState.READY)
    member.address = None
    member.note_wish(keys(A, B))
    assert member.missing == NONE, "it holds nothing at all"


def test_a_loss_takes_what_it_held_and_keeps_when_it_was_first_lost() -> None:
    worker = ready(0, A)
    worker.surplus = Surplus(keys(A), 1)
    worker.note_loss(Failure(FailureReason.DIED, "gone"), 5.0)
    assert (worker.held, worker.is_ready, worker.lost_at) == (NONE, False, 5.0)
    assert worker.surplus is None
    worker.note_loss(Failure(FailureReason.LATE, "still"), 7.0)
    assert (worker.num_losses, worker.lost_at, worker.last_loss) == (2, 5.0, "still")
    assert worker.policy.next_at > 7.0, "the second time it waits"


def test_its_status_says_what_people_call_its_experts() -> None:
    """Slot 3 is a later version of expert 1; what is in no catalog any more has no name."""
    worker = ready(2, (0, 1), (0, 3), (1, 0), (1, 9))
    worker.missing = keys((1, 2))
    worker.info = make_info(rank=2, node_id="n", pid=7, num_bytes=100)
    expert_ids = {(0, 1): 1, (0, 3): 1, (1, 0): 0, (1, 2): 2}
    status = worker.status(expert_ids, routed_rows=9)
    assert (status.rank, status.state, status.node_id, status.pid) == (2, WorkerState.INCOMPLETE, "n", 7)
    assert (status.experts, status.missing) == ({0: (1,), 1: (0,)}, {1: (2,)})
    assert (status.routed_rows, status.num_bytes) == (9, 100)
    worker.note_loss(Failure(FailureReason.DIED, "gone"), 1.0)
    lost = worker.status(expert_ids, 9)
    assert (lost.state, lost.pid, lost.experts, lost.last_loss) == (WorkerState.LOST, 0, {}, "gone")
    assert (status.is_up, lost.is_up) == (True, False), "READY counts those that are up"


def test_a_worker_that_has_not_answered_yet_has_no_place() -> None:
    assert SupervisedWorker(3).status({}, 0) == WorkerStatus(3, WorkerState.STARTING)
