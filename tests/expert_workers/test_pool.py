import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_workers.members import WorkerState
from expert_workers.pool import ExpertPool
from expert_workers.pool_stats import DispatchRecord
from expert_workers.transport import FailureReason
from expert_workers.wire import ExpertCall, ExpertReply
from moe_model.errors import ExpertsLostError, WorkerStartError
from tests.expert_workers.fakes import (
    Fault,
    changes,
    fails,
    make_config,
    make_local,
    make_pool,
    make_routing,
    make_rows,
)

CONFIG = make_config()
X_TD = make_rows(9, CONFIG)
ROUTING = make_routing(9, CONFIG.n_experts, 2)
EXPECTED = make_local(CONFIG).forward(1, X_TD, ROUTING)


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
)
def test_it_equals_local_experts_to_the_last_bit(
    n_experts: int, replicas: int, num_workers: int, num_tokens: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    config = make_config(n_experts=n_experts)
    pool, _ = make_pool(config, num_workers, min(replicas, num_workers), dtype)
    top_k = data.draw(st.integers(1, n_experts))
    x_TD, routing = make_rows(num_tokens, config, dtype), make_routing(num_tokens, n_experts, top_k)
    y_TD = pool.forward(1, x_TD, routing)
    assert y_TD.dtype == dtype
    assert torch.equal(y_TD, make_local(config, dtype).forward(1, x_TD, routing))


def test_a_hidden_state_is_sent_once_to_each_worker_that_needs_it() -> None:
    pool, transport = make_pool(CONFIG, 1, 1)
    pool.forward(0, X_TD, ROUTING)
    [(_, call)] = transport.calls
    assert call.x_RD.shape[0] == 9
    assert call.num_pairs == 18


def test_a_worker_without_rows_is_not_called() -> None:
    pool, transport = make_pool(CONFIG, 7, 1)
    pool.forward(0, X_TD[:1], make_routing(1, CONFIG.n_experts, 1))
    assert len(transport.calls) == 1


def test_all_calls_are_gathered_once_with_one_deadline() -> None:
    pool, transport = make_pool(CONFIG, 3, 1)
    transport.deadlines.clear()
    before = time.monotonic()
    pool.forward(0, X_TD, ROUTING)
    [deadline] = transport.deadlines
    assert before + 10 <= deadline <= time.monotonic() + 10


BAD_REPLIES: list[tuple[Fault, FailureReason]] = [
    (fails(FailureReason.DIED), FailureReason.DIED),
    (fails(FailureReason.LATE), FailureReason.LATE),
    (fails(FailureReason.RAISED), FailureReason.RAISED),
    (changes(call_id=0), FailureReason.INVALID),
    (changes(epoch=8), FailureReason.INVALID),
    (lambda call, reply: reply._replace(y_ND=reply.y_ND.astype(np.float64)), FailureReason.INVALID),
    (lambda call, reply: reply._replace(y_ND=reply.y_ND[:-1]), FailureReason.INVALID),
    (lambda call, reply: reply._replace(y_ND=reply.y_ND * math.nan), FailureReason.INVALID),
    (lambda call, reply: reply._replace(y_ND=reply.y_ND * math.inf), FailureReason.INVALID),
]
NAMES = ["died", "late", "raised", "call id", "epoch", "dtype", "shape", "nan", "inf"]


@pytest.mark.parametrize(("fault", "reason"), BAD_REPLIES, ids=NAMES)
def test_a_replica_answers_for_a_worker_that_fails(fault: Fault, reason: FailureReason) -> None:
    pool, transport = make_pool(CONFIG, 3, 2)
    transport.faults[1].append(fault)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert not transport.faults[1]
    assert pool.lost == {1}
    assert pool.stats().workers[1].failures == {reason: 1}
    transport.calls.clear()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert {rank for rank, _ in transport.calls} == {0, 2}


@pytest.mark.parametrize(("fault", "reason"), BAD_REPLIES, ids=NAMES)
def test_without_a_replica_the_loss_is_named(fault: Fault, reason: FailureReason) -> None:
    pool, transport = make_pool(CONFIG, 2, 1)
    transport.faults[1].append(fault)
    with pytest.raises(ExpertsLostError, match="lost: worker 1") as raised:
        pool.forward(1, X_TD, ROUTING)
    assert raised.value.ranks == (1,)
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)


def test_experts_of_live_workers_go_on_without_the_lost_ones() -> None:
    pool, transport = make_pool(CONFIG, 2, 1)
    transport.faults[1].append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    ids_TK = torch.full((9, 1), next(iter(pool.topology()[0].experts[1])))
    routing = replace(ROUTING, expert_ids_TK=ids_TK, weights_TK=torch.ones(9, 1))
    assert torch.equal(pool.forward(1, X_TD, routing), make_local(CONFIG).forward(1, X_TD, routing))


def test_workers_lost_one_after_the_other_are_survived_while_a_holder_lives() -> None:
    pool, transport = make_pool(CONFIG, 3, 3)
    transport.faults[0].append(fails(FailureReason.DIED))
    transport.faults[1].append(fails(FailureReason.DIED))
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.lost == {0, 1}


def test_the_reply_to_an_earlier_call_is_never_used() -> None:
    pool, transport = make_pool(CONFIG, 2, 2)
    kept: list[ExpertReply] = []

    def keep(call: ExpertCall, reply: ExpertReply) -> ExpertReply:
        kept.append(reply)
        return reply

    transport.faults[0].extend([keep, lambda call, reply: kept[0]])
    pool.forward(1, X_TD + 1, ROUTING)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.stats().workers[0].failures == {FailureReason.INVALID: 1}


def test_rows_that_are_not_finite_cost_no_worker() -> None:
    pool, _ = make_pool(CONFIG, 2, 1)
    x_TD = X_TD.clone()
    x_TD[3] = math.nan
    y_TD = pool.forward(1, x_TD, ROUTING)
    assert not pool.lost
    assert y_TD[3].isnan().all()
    others = [row for row in range(9) if row != 3]
    assert y_TD[others].isfinite().all()


def test_a_lost_worker_that_answers_again_is_taken_back() -> None:
    pool, transport = make_pool(CONFIG, 2, 1, retry_interval=0.0)
    transport.faults[1].append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    assert pool.topology()[1].state is WorkerState.LOST
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.topology()[1].state is WorkerState.READY


class Restarts:
    """A PoolObserver."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, FailureReason]] = []

    def dispatched(self, record: DispatchRecord) -> None:
        return None

    def restarted(self, rank: int, reason: FailureReason) -> None:
        self.seen.append((rank, reason))


@pytest.mark.parametrize(
    ("pid", "seen"), [(1, [(1, FailureReason.LATE)]), (None, [])], ids=["another process", "the same one"]
)
def test_only_another_process_is_a_restart(pid: int | None, seen: list[tuple[int, FailureReason]]) -> None:
    restarts = Restarts()
    pool, transport = make_pool(CONFIG, 2, 1, retry_interval=0.0, observer=restarts)
    transport.describes[1] = lambda info: replace(info, pid=pid or info.pid)
    transport.faults[1].append(fails(FailureReason.LATE))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert restarts.seen == seen


def test_the_topology_and_the_counters_say_what_happened() -> None:
    pool, transport = make_pool(CONFIG, 2, 1)
    pool.forward(0, X_TD, ROUTING)
    pool.forward(1, X_TD, ROUTING)
    records, stats = pool.topology(), pool.stats()
    assert [record.rank for record in records] == [0, 1]
    assert sum(record.routed_rows for record in records) == 36
    assert records[0].experts == {0: (0, 2, 4), 1: (1, 3)}
    assert {record.state for record in records} == {WorkerState.READY}
    assert stats.dispatches == 2
    assert stats.dispatch_seconds > 0
    assert sum(worker.calls for worker in stats.workers.values()) == len(transport.calls) == 4


def wrong_keys_pool() -> ExpertPool:
    pool, transport = make_pool(CONFIG, 2, 1)
    transport.describes[1] = lambda info: replace(info, keys=())
    return ExpertPool.connect(pool._placement, transport)


def test_workers_that_hold_something_else_are_refused() -> None:
    with pytest.raises(WorkerStartError, match="worker 1: holds other experts"):
        wrong_keys_pool()


def test_close_is_idempotent() -> None:
    pool, _ = make_pool(CONFIG, 2, 1)
    pool.close()
    pool.close()
