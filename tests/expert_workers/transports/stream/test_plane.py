"""StreamPlane over real sockets: workers in this process, each with a stream server."""

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.transports.base import Failure, FailureReason
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker.expert_worker import ExpertWorker
from tests.examples import examples
from tests.expert_workers.fake_links import routes_over
from tests.expert_workers.fakes import (
    dealt,
    make_config,
    make_local,
    make_routing,
    make_rows,
    make_worker,
    placed,
)
from tests.expert_workers.stream_fakes import (
    StreamFleet,
    make_call,
    outcomes,
    running,
    stream_pool,
    streams,
)
from tests.threads import no_thread_left

CONFIG = make_config()
PLACEMENT = dealt(2, 5, 2)
X_TD, ROUTING = make_rows(9, CONFIG), make_routing(9, CONFIG.n_experts, 2)
EXPECTED = make_local(CONFIG).forward(1, X_TD, ROUTING)
WAYS = pytest.mark.parametrize("use_unix", [True, False], ids=["unix", "tcp"])


class Slow:
    """A Answerer that answers when it is let go, and gives back what it got."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def compute(self, call: ExpertCall) -> ExpertReply:
        assert self.go.wait(30)
        return ExpertReply(call.call_id, call.epoch, call.layer, call.tag, call.x_RD.copy(), 0.0)


@WAYS
def test_it_equals_local_experts_and_dispatches_may_overlap(use_unix: bool) -> None:
    workers = {rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)}
    with streams(workers, use_unix=use_unix) as (links, _):
        pool = stream_pool(PLACEMENT, links)
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
    with streams({0: worker}, use_unix=use_unix) as (links, _):
        pendings = [links[0].send(make_call(call_id, 4096, 512)) for call_id in range(6)]
        for call_id, reply in enumerate(outcomes(pendings)):
            assert isinstance(reply, ExpertReply)
            assert reply.call_id == call_id
            assert (reply.y_ND == call_id).all()


def test_a_late_answer_is_waited_for_again_or_found_by_the_next_wait() -> None:
    worker = Slow()
    with streams({0: worker}) as (links, _):
        late = links[0].send(make_call(1, 9000, 16))
        started = time.monotonic()
        assert outcomes([late], started + 0.05) == [None]
        assert 0.05 <= time.monotonic() - started < 5
        worker.go.set()
        [reply] = outcomes([links[0].send(make_call(2))])
        assert isinstance(reply, ExpertReply)
        assert (reply.call_id, reply.y_ND[0, 0]) == (2, 2)
        assert isinstance(late.outcome, ExpertReply)
        assert late.arrived > 0
        assert links[0].is_idle


@WAYS
def test_waiting_for_several_ends_when_it_is_enough(use_unix: bool) -> None:
    slow, quick = Slow(), Slow()
    quick.go.set()
    with streams({0: slow, 1: quick}, use_unix=use_unix) as (links, _):
        pendings = [links[rank].send(make_call(1, 50)) for rank in (0, 1)]
        asked: list[list[bool]] = []

        def is_enough() -> bool:
            asked.append([pending.outcome is not None for pending in pendings])
            return True

        StreamPlane().wait(pendings, time.monotonic() + 60, is_enough)
        assert asked == [[False, True]]
        slow.go.set()
        assert all(isinstance(outcome, ExpertReply) for outcome in outcomes(pendings))


def test_a_wait_without_time_still_takes_what_has_come() -> None:
    worker = Slow()
    worker.go.set()
    with streams({0: worker}) as (links, _):
        pending = links[0].send(make_call(1))
        deadline = time.monotonic() + 10
        while pending.outcome is None:
            assert time.monotonic() < deadline
            StreamPlane().wait([pending], 0.0)
        assert isinstance(pending.outcome, ExpertReply)


def test_a_worker_s_error_comes_back_as_one_line_and_the_stream_goes_on() -> None:
    with streams({0: make_worker(CONFIG, PLACEMENT, 0)}) as (links, _):
        bad, good = make_call(1, width=5), make_call(2, width=16)
        found = outcomes([links[0].send(bad), links[0].send(good)])
        message = "worker 0: rows have shape (2, 5), expected (rows, 16)"
        assert found[0] == Failure(FailureReason.RAISED, message)
        assert isinstance(found[1], ExpertReply)


def test_a_coordinator_whose_epoch_is_over_is_told_so() -> None:
    worker = make_worker(CONFIG, PLACEMENT, 0)
    with streams({0: worker}) as (links, _):
        worker.claim("a coordinator", 1)
        [failure] = outcomes([links[0].send(make_call(1, width=16))])
        assert isinstance(failure, Failure)
        assert failure.reason is FailureReason.FENCED
        assert failure.message == "worker 0: epoch 0 is over: a coordinator of epoch 1 has taken over"


class Lying:
    """A Answerer whose answers are not what they should be."""

    def __init__(self, worker: ExpertWorker, change: Callable[[ExpertReply], ExpertReply]) -> None:
        self._worker = worker
        self._change = change

    def compute(self, call: ExpertCall) -> ExpertReply:
        return self._change(self._worker.compute(call))


LIES = {
    "nan": (lambda reply: reply._replace(y_ND=reply.y_ND * np.float32(math.nan)), FailureReason.INVALID),
    "infinite": (lambda reply: reply._replace(y_ND=reply.y_ND * np.float32(math.inf)), FailureReason.INVALID),
    "shape": (lambda reply: reply._replace(y_ND=reply.y_ND[:-1].copy()), FailureReason.INVALID),
    "epoch": (lambda reply: reply._replace(epoch=reply.epoch + 1), FailureReason.INVALID),
    "layer": (lambda reply: reply._replace(layer=reply.layer + 1), FailureReason.INVALID),
    "weights": (lambda reply: reply._replace(tag=reply.tag + 1), FailureReason.INVALID),
    # Nobody has asked: the call that was asked stays unanswered.
    "call id": (lambda reply: reply._replace(call_id=reply.call_id + 1000), FailureReason.LATE),
}


@WAYS
@pytest.mark.parametrize(("change", "reason"), LIES.values(), ids=LIES)
def test_a_lying_worker_s_answers_are_never_used(
    use_unix: bool, change: Callable[[ExpertReply], ExpertReply], reason: FailureReason
) -> None:
    placement = placed(2, 5, 2, 2)
    workers = [make_worker(CONFIG, placement, rank) for rank in range(2)]
    with streams({0: workers[0], 1: Lying(workers[1], change)}, use_unix=use_unix) as (links, _):
        pool = stream_pool(placement, links, PoolOptions(call_timeout=0.5, least_timeout=0.5))
        for _ in range(2):
            assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        assert pool.stats().workers[1].failures == {reason: 1}
        assert pool.stats().workers[1].calls == 0
        pool.close()


@WAYS
def test_a_death_is_seen_at_once_and_the_restarted_worker_is_used_again(use_unix: bool) -> None:
    placement = placed(2, 5, 2, 2)
    workers = {rank: make_worker(CONFIG, placement, rank) for rank in range(2)}
    with streams(workers, use_unix=use_unix) as (links, machine):
        pool = stream_pool(placement, links, PoolOptions(call_timeout=30))
        machine.kill(1)
        started = time.monotonic()
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        assert time.monotonic() - started < 5
        assert pool.stats().workers[1].failures == {FailureReason.DIED: 1}
        machine.start(1)
        again: dict[int, StreamConnection] = {**links, 1: StreamFleet(machine, use_unix=use_unix).open(1)}
        pool.publish(routes_over(pool, 2, again, placement.holders))
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        assert again[1].pid == machine.num_started == 3
        assert pool.stats().workers[1].calls == 1
        pool.close()


def test_what_was_begun_before_a_loss_is_sent_again_and_costs_nobody_else() -> None:
    placement = placed(2, 5, 3, 2)
    workers = {rank: make_worker(CONFIG, placement, rank) for rank in range(3)}
    with streams(workers) as (links, machine):
        pool = stream_pool(placement, links)
        begun = [pool.begin(1, X_TD, ROUTING) for _ in range(3)]
        machine.kill(1)
        begun += [pool.begin(1, X_TD, ROUTING) for _ in range(2)]
        for dispatch in begun:
            assert torch.equal(pool.finish(dispatch), EXPECTED)
        stats = pool.stats()
        assert {rank: sum(worker.failures.values()) for rank, worker in stats.workers.items()} == {
            0: 0,
            1: 1,
            2: 0,
        }


def test_a_death_is_seen_while_nothing_is_dispatched() -> None:
    workers = {rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)}
    with streams(workers) as (links, machine):
        pool = stream_pool(PLACEMENT, links)
        pool.idle()
        machine.kill(0)
        pool.idle()
        assert pool.stats().workers[0].failures == {FailureReason.DIED: 1}
        assert len(pool.missing_experts()) == len(PLACEMENT.experts_of(0))


def test_several_coordinators_use_one_worker_at_a_time() -> None:
    placement = placed(2, 5, 1)

    def use(pool: ExpertPool, seed: int) -> None:
        for num_tokens in range(1, 40):
            x_TD = make_rows(num_tokens, CONFIG)
            routing = make_routing(num_tokens, CONFIG.n_experts, 2, seed)
            expected = make_local(CONFIG).forward(1, x_TD, routing)
            assert torch.equal(pool.forward(1, x_TD, routing), expected)

    with running({0: make_worker(CONFIG, placement, 0)}) as machine, ExitStack() as stack:
        pools = [stream_pool(placement, {0: StreamFleet(machine).open(0)}) for _ in range(4)]
        for pool in pools:
            pool.idle()
            stack.callback(pool.close)
        with ThreadPoolExecutor(len(pools)) as executor:
            for done in [executor.submit(use, pool, seed) for seed, pool in enumerate(pools)]:
                done.result()


def test_nothing_is_left_after_close() -> None:
    files, names = len(os.listdir("/proc/self/fd")), []
    with no_thread_left():
        for _ in range(3):
            with streams({0: make_worker(CONFIG, PLACEMENT, 0)}) as (links, machine):
                names.append(machine.server(0).endpoint.unix_name.removeprefix("\0"))
                outcomes([links[0].send(make_call(1, width=16))])
                links[0].close()
                links[0].close()
    assert len(os.listdir("/proc/self/fd")) == files
    with open("/proc/net/unix", encoding="ascii") as listed:
        sockets = listed.read()
    assert not [name for name in names if name in sockets]


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
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
        placement = placed(2, 5, workers)
        made = {rank: make_worker(CONFIG, placement, rank, dtype) for rank in range(workers)}
        with streams(made, use_unix=use_unix) as (links, _):
            options = PoolOptions(wire_dtype=wire_dtype, combine=combine)
            results.append(stream_pool(placement, links, options).forward(1, x_TD, routing))
    expected = make_local(CONFIG, dtype).forward(1, x_TD, routing)
    if combine is Combine.SUM and top_k > 2:
        torch.testing.assert_close(results[0], results[-1], rtol=1e-2, atol=1e-2)
    else:
        assert torch.equal(results[0], results[-1])
        if wire_dtype == "float32" or dtype == torch.bfloat16:
            assert torch.equal(results[0], expected)
    torch.testing.assert_close(results[0], expected, rtol=5e-2, atol=5e-2)
