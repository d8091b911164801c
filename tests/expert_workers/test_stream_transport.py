"""The stream transport over real sockets: workers in this process, a control without Ray."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expert_workers.assembly import Combine
from expert_workers.dispatch import PoolOptions
from expert_workers.placement import place
from expert_workers.pool import ExpertPool
from expert_workers.stream_transport import StreamTransport
from expert_workers.transport import Failure, FailureReason
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker import WorkerInfo
from tests.expert_workers.fakes import (
    make_config,
    make_info,
    make_local,
    make_routing,
    make_rows,
    make_worker,
)
from tests.expert_workers.stream_fakes import introduce_all, make_call, soon, streams

CONFIG = make_config()
PLACEMENT = place(2, 5, 2)
X_TD, ROUTING = make_rows(9, CONFIG), make_routing(9, CONFIG.n_experts, 2)
EXPECTED = make_local(CONFIG).forward(1, X_TD, ROUTING)
WAYS = pytest.mark.parametrize("use_unix", [True, False], ids=["unix", "tcp"])


class Slow:
    """A LocalWorker that answers when it is let go, and gives back what it got."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def compute(self, call: ExpertCall) -> ExpertReply:
        assert self.go.wait(30)
        return ExpertReply(call.call_id, call.epoch, call.layer, call.tag, call.x_RD.copy(), 0.0)

    def describe(self) -> WorkerInfo:
        return make_info()


@WAYS
def test_it_equals_local_experts_and_dispatches_may_overlap(use_unix: bool) -> None:
    workers = {rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)}
    with streams(workers, use_unix=use_unix) as (transport, _):
        pool = ExpertPool.connect(PLACEMENT, transport)
        for num_tokens in (1, 9, 5000):
            x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, 2)
            expected = [make_local(CONFIG).forward(layer, x_TD, routing) for layer in (0, 1)]
            begun = [pool.begin(layer, x_TD, routing) for layer in (0, 1, 0, 1)]
            for dispatch, layer in zip(begun, (0, 1, 0, 1), strict=True):
                assert torch.equal(pool.finish(dispatch), expected[layer])


@WAYS
def test_calls_that_fill_every_buffer_do_not_wait_for_each_other(use_unix: bool) -> None:
    """Neither end can write: the worker, because nobody reads its answers; we, because it does not read."""
    worker = Slow()
    worker.go.set()
    with streams({0: worker}, use_unix=use_unix) as (transport, _):
        introduce_all(transport)
        pendings = [transport.send(0, make_call(call_id, 4096, 512)) for call_id in range(6)]
        replies = transport.gather(pendings, soon())
        for call_id, reply in enumerate(replies):
            assert isinstance(reply, ExpertReply)
            assert reply.call_id == call_id
            assert (reply.y_ND == call_id).all()


def test_a_late_answer_is_dropped_and_the_next_one_is_found() -> None:
    worker = Slow()
    with streams({0: worker}) as (transport, _):
        introduce_all(transport)
        late = transport.send(0, make_call(1, 9000, 16))
        [outcome] = transport.gather([late], time.monotonic() + 0.05)
        assert isinstance(outcome, Failure)
        assert outcome == Failure(FailureReason.LATE, "worker 0: no answer in time")
        worker.go.set()
        del late
        [reply] = transport.gather([transport.send(0, make_call(2))], soon())
        assert isinstance(reply, ExpertReply)
        assert (reply.call_id, reply.y_ND[0, 0]) == (2, 2)


def test_a_late_call_may_be_gathered_again() -> None:
    worker = Slow()
    with streams({0: worker}) as (transport, _):
        introduce_all(transport)
        pending = transport.send(0, make_call(1))
        [outcome] = transport.gather([pending], 0.0)
        assert isinstance(outcome, Failure)
        worker.go.set()
        [reply] = transport.gather([pending], soon())
        assert isinstance(reply, ExpertReply)


def test_a_worker_s_error_comes_back_as_one_line_and_the_stream_goes_on() -> None:
    with streams({0: make_worker(CONFIG, PLACEMENT, 0)}) as (transport, _):
        introduce_all(transport)
        bad, good = make_call(1, width=5), make_call(2, width=16)
        outcomes = transport.gather([transport.send(0, bad), transport.send(0, good)], soon())
        message = "worker 0: rows have shape (2, 5), expected (rows, 16)"
        assert outcomes[0] == Failure(FailureReason.RAISED, message)
        assert isinstance(outcomes[1], ExpertReply)


@WAYS
def test_a_death_is_seen_at_once_and_the_restarted_worker_is_taken_back(use_unix: bool) -> None:
    placement = place(2, 5, 2, 2)
    workers = {rank: make_worker(CONFIG, placement, rank) for rank in range(2)}
    with streams(workers, use_unix=use_unix) as (transport, control):
        pool = ExpertPool.connect(placement, transport, PoolOptions(call_timeout=30, retry_interval=0.01))
        control.kill(1)
        started = time.monotonic()
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        assert time.monotonic() - started < 5
        assert pool.lost == {1}
        assert pool.stats().workers[1].failures == {FailureReason.DIED: 1}
        control.start(1)
        assert pool.revive(soon()) == {1}
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        assert pool.topology()[1].pid == control.num_started


def test_what_was_begun_before_a_loss_is_sent_again_and_costs_nobody_else() -> None:
    placement = place(2, 5, 3, 2)
    workers = {rank: make_worker(CONFIG, placement, rank) for rank in range(3)}
    with streams(workers) as (transport, control):
        pool = ExpertPool.connect(placement, transport, PoolOptions(retry_interval=60))
        begun = [pool.begin(1, X_TD, ROUTING) for _ in range(3)]
        control.kill(1)
        begun += [pool.begin(1, X_TD, ROUTING) for _ in range(2)]
        for dispatch in begun:
            assert torch.equal(pool.finish(dispatch), EXPECTED)
        assert pool.lost == {1}
        assert sum(pool.stats().workers[1].failures.values()) == 1


def test_a_death_is_seen_while_nothing_is_dispatched() -> None:
    workers = {rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)}
    with streams(workers) as (transport, control):
        pool = ExpertPool.connect(PLACEMENT, transport, PoolOptions(retry_interval=0.0))
        control.kill(0)
        control.start(0)
        pool.watch()
        assert pool.lost == {0}
        assert pool.revive(soon()) == {0}


def test_several_coordinators_use_one_worker_at_a_time() -> None:
    placement = place(2, 5, 1)

    def use(pool: ExpertPool, seed: int) -> None:
        for num_tokens in range(1, 40):
            x_TD = make_rows(num_tokens, CONFIG)
            routing = make_routing(num_tokens, CONFIG.n_experts, 2, seed)
            expected = make_local(CONFIG).forward(1, x_TD, routing)
            assert torch.equal(pool.forward(1, x_TD, routing), expected)

    with streams({0: make_worker(CONFIG, placement, 0)}) as (_, control), ExitStack() as stack:
        pools = [ExpertPool.connect(placement, StreamTransport(control)) for _ in range(4)]
        for pool in pools:
            stack.callback(pool.close)
        with ThreadPoolExecutor(len(pools)) as executor:
            for done in [executor.submit(use, pool, seed) for seed, pool in enumerate(pools)]:
                done.result()


def test_nothing_is_left_after_close() -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    names = []
    for _ in range(3):
        with streams({0: make_worker(CONFIG, PLACEMENT, 0)}) as (transport, control):
            names.append(control.server(0).endpoint.unix_name.removeprefix("\0"))
            introduce_all(transport)
            transport.gather([transport.send(0, make_call(1, width=16))], soon())
            transport.close()
            transport.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    with open("/proc/net/unix", encoding="ascii") as listed:
        sockets = listed.read()
    assert not [name for name in names if name in sockets]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from(Combine),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_placement_does_not_show(
    num_workers: int,
    top_k: int,
    num_tokens: int,
    combine: Combine,
    wire_dtype: str,
    dtype: torch.dtype,
    use_unix: bool,
) -> None:
    x_TD, routing = make_rows(num_tokens, CONFIG, dtype), make_routing(num_tokens, CONFIG.n_experts, top_k)
    results = []
    for workers in {1, num_workers}:
        placement = place(2, 5, workers)
        made = {rank: make_worker(CONFIG, placement, rank, dtype) for rank in range(workers)}
        with streams(made, use_unix=use_unix) as (transport, _):
            options = PoolOptions(wire_dtype=wire_dtype, combine=combine)
            results.append(ExpertPool.connect(placement, transport, options).forward(1, x_TD, routing))
    expected = make_local(CONFIG, dtype).forward(1, x_TD, routing)
    if combine is Combine.SUM and top_k > 2:
        torch.testing.assert_close(results[0], results[-1], rtol=1e-2, atol=1e-2)
    else:
        assert torch.equal(results[0], results[-1])
        if wire_dtype == "float32" or dtype == torch.bfloat16:
            assert torch.equal(results[0], expected)
    torch.testing.assert_close(results[0], expected, rtol=5e-2, atol=5e-2)
