"""A pool whose dispatches C runs, over real sockets: what is uncommon is Python's, and later C's again."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from expert_workers.dispatch.native_way import HAS_NATIVE, NativeDispatch
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.pool_stats import DispatchRecord
from expert_workers.placement.placement import Placement
from expert_workers.transports.base import Answerer, FailureReason, Link
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.wire import ExpertCall, ExpertReply
from moe_model.config import ModelConfig
from moe_model.errors import ExpertsLostError, ReplyError
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog
from tests.expert_workers.fake_links import FakeRescuer, GivenLinks, routes_over
from tests.expert_workers.fakes import (
    make_config,
    make_local,
    make_routing,
    make_rows,
    make_worker,
    placed,
)
from tests.expert_workers.stream_fakes import stream_pool, streams

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="built without a C compiler")

CONFIG = make_config()
X_TD, ROUTING = make_rows(9, CONFIG), make_routing(9, CONFIG.n_experts, 2)
EXPECTED = make_local(CONFIG).forward(1, X_TD, ROUTING)
TWO = placed(2, 5, 2)
TWICE = placed(2, 5, 2, 2)


def workers(placement: Placement = TWO) -> dict[int, Answerer]:
    return {rank: make_worker(CONFIG, placement, rank) for rank in range(2)}


def is_native(pool: ExpertPool) -> bool:
    """Whether C runs a dispatch now, which is right."""
    begun = pool.begin(1, X_TD, ROUTING)
    assert torch.equal(pool.finish(begun), EXPECTED)
    return isinstance(begun, NativeDispatch)


class Gate:
    """An Answerer that answers once it may, for as long as it may, and counts."""

    def __init__(self, worker: Answerer) -> None:
        self.worker = worker
        self.goes = threading.Event()
        self.goes.set()
        self.change: Callable[[ExpertReply], ExpertReply] = lambda reply: reply

    def compute(self, call: ExpertCall) -> ExpertReply:
        assert self.goes.wait(30)
        return self.change(self.worker.compute(call))


def test_common_dispatches_are_run_in_c_and_may_overlap() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        begun = [pool.begin(1, X_TD, ROUTING) for _ in range(4)]
        assert all(isinstance(each, NativeDispatch) for each in begun)
        for each in begun:
            assert torch.equal(pool.finish(each), EXPECTED)
        pool.close()


def test_python_does_the_same_where_it_is_told_to() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links, PoolOptions(native=False))
        assert not is_native(pool)
        assert pool.in_c is None
        pool.close()


@pytest.mark.parametrize("num_tokens", [1, 2, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_rows_has_the_bits_of_python(num_tokens: int, dtype: torch.dtype) -> None:
    x_TD, routing = make_rows(num_tokens, CONFIG, dtype), make_routing(num_tokens, CONFIG.n_experts, 3)
    made = {rank: make_worker(CONFIG, TWO, rank, dtype) for rank in range(2)}
    with streams(made) as (links, _):
        pool = stream_pool(TWO, links)
        assert torch.equal(
            pool.forward(1, x_TD, routing), make_local(CONFIG, dtype).forward(1, x_TD, routing)
        )
        pool.close()


@pytest.mark.parametrize("placement", [TWO, TWICE], ids=["one holder", "two holders"])
def test_no_rows_are_no_rows(placement: Placement) -> None:
    with streams(workers(placement)) as (links, _):
        pool = stream_pool(placement, links)
        for top_k in (1, 3):
            routing = make_routing(0, CONFIG.n_experts, top_k)
            assert pool.forward(1, X_TD[:0], routing).shape == (0, CONFIG.d_model)
        pool.close()


def test_rows_that_are_not_in_one_piece_are_python_s() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        assert is_native(pool)
        turned = X_TD.T.contiguous().T
        begun = pool.begin(1, turned, ROUTING)
        assert not isinstance(begun, NativeDispatch)
        assert torch.equal(pool.finish(begun), EXPECTED)
        assert is_native(pool)
        pool.close()


def test_one_that_is_never_finished_costs_the_next_ones_nothing() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        pool.begin(1, X_TD, ROUTING)
        begun = [pool.begin(0, X_TD, ROUTING), pool.begin(1, X_TD, ROUTING)]
        assert isinstance(begun[1], NativeDispatch)
        assert torch.equal(pool.finish(begun[0]), make_local(CONFIG).forward(0, X_TD, ROUTING))
        assert torch.equal(pool.finish(begun[1]), EXPECTED)
        assert is_native(pool)
        assert pool.stats().workers[0].calls == 3
        pool.close()


def failing_once() -> Gate:
    """Worker 1, whose first answer is an error."""
    bad, failing = Gate(make_worker(CONFIG, TWICE, 1)), [True]

    def change(reply: ExpertReply) -> ExpertReply:
        if failing:
            failing.pop()
            raise ReplyError("told to fail")
        return reply

    bad.change = change
    return bad


def test_a_worker_s_error_leaves_the_dispatch_behind_it_whole() -> None:
    bad = failing_once()
    with streams({0: make_worker(CONFIG, TWICE, 0), 1: bad}) as (links, _):
        pool = stream_pool(TWICE, links)
        begun = [pool.begin(1, X_TD, ROUTING) for _ in range(2)]
        for each in begun:
            assert torch.equal(pool.finish(each), EXPECTED)
        assert pool.stats().workers[1].failures == {FailureReason.RAISED: 1}
        assert is_native(pool)
        pool.close()


def test_a_slow_worker_s_rows_go_to_its_replica_and_c_goes_on_once_it_has_answered() -> None:
    gate = Gate(make_worker(CONFIG, TWICE, 1))
    with streams({0: make_worker(CONFIG, TWICE, 0), 1: gate}) as (links, _):
        pool = stream_pool(TWICE, links, PoolOptions(hedge_floor=0.02))
        deadline = time.monotonic() + 30
        while pool.stats().num_hedged == 0:
            assert time.monotonic() < deadline
            # It is known what is usual after some calls, which C tells of now and then.
            for _ in range(30):
                assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
            threading.Event().wait(0.06)
            pool.forward(1, X_TD, ROUTING)
            gate.goes.clear()
            started = time.monotonic()
            assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
            assert time.monotonic() - started < 5
            gate.goes.set()
        deadline = time.monotonic() + 30
        while not is_native(pool):
            assert time.monotonic() < deadline
        assert not pool.stats().workers[1].failures
        pool.close()


def test_what_is_published_counts_from_the_next_dispatch_on() -> None:
    with streams(workers(TWICE)) as (links, _):
        pool = stream_pool(TWICE, links)
        begun = pool.begin(1, X_TD, ROUTING)
        only = dict.fromkeys(TWICE.holders, (0,))
        one: dict[int, Link] = {0: links[0]}
        pool.publish(
            replace(routes_over(pool, 2, links, only), addresses=routes_over(pool, 2, one, only).addresses)
        )
        assert isinstance(begun, NativeDispatch)
        assert is_native_after(pool, begun)
        calls = pool.stats().workers[1].calls
        assert is_native(pool)
        assert pool.stats().workers[1].calls == calls
        pool.close()


def is_native_after(pool: ExpertPool, begun: NativeDispatch) -> bool:
    """Whether it was C that finished it, and it is right."""
    assert torch.equal(pool.finish(begun), EXPECTED)
    return begun.taken_over is None


def test_nothing_goes_through_links_that_are_closed() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        begun = pool.begin(1, X_TD, ROUTING)
        assert isinstance(begun, NativeDispatch)
        pool.close()
        assert begun.taken_over is not None
        with pytest.raises(ExpertsLostError):
            pool.forward(1, X_TD, ROUTING)


def watched_pool(links: dict[int, Link], told: list[DispatchRecord]) -> ExpertPool:
    class Observer:
        def dispatched(self, records: Sequence[DispatchRecord]) -> None:
            told.extend(records)

    catalog = Catalog.of_checkpoint(ModelConfig(n_layers=2, n_experts=5, top_k=1))
    pool = ExpertPool(catalog, GivenLinks(StreamPlane()), None, FakeRescuer(), Observer())
    pool.publish(routes_over(pool, 1, links, TWICE.holders))
    return pool


def test_an_observer_is_told_once_a_step_in_order_by_whomever_it_was_run() -> None:
    gate = Gate(make_worker(CONFIG, TWICE, 1))
    with streams({0: make_worker(CONFIG, TWICE, 0), 1: gate}) as (links, machine):
        told: list[DispatchRecord] = []
        pool = watched_pool(dict(links), told)
        assert is_native(pool)
        pool.forward(0, X_TD, ROUTING)
        machine.kill(1)
        pool.forward(
            0,
            X_TD[:3],
            Routing(*(each[:3] for each in (ROUTING.weights_TK, ROUTING.expert_ids_TK, ROUTING.logits_TE))),
        )
        assert not told
        pool.tell_dispatches()
        assert [(record.layer, sum(record.rows.values())) for record in told] == [(1, 18), (0, 18), (0, 6)]
        assert [dict(record.retries) for record in told] == [{}, {}, {FailureReason.DIED: 1}]
        starts = [record.start_ns for record in told]
        assert starts == sorted(starts)
        assert all(0 < r.combine_seconds < r.seconds for r in told)
        assert all((r.end_ns - r.start_ns) == int(r.seconds * 1e9) for r in told)
        pool.tell_dispatches()
        assert len(told) == 3
        pool.close()


def test_counts_are_those_of_python() -> None:
    found = []
    for native in (True, False):
        with streams(workers()) as (links, _):
            pool = stream_pool(TWO, links, PoolOptions(native=native))
            for layer in (0, 1, 1):
                pool.forward(layer, X_TD, ROUTING)
            stats = pool.stats()
            found.append(
                (
                    stats.dispatches,
                    stats.loads,
                    {rank: (each.calls, each.rows, each.failures) for rank, each in stats.workers.items()},
                )
            )
            assert pool.loads() == stats.loads
            pool.close()
    assert found[0] == found[1]


def test_what_c_has_on_its_way_outlives_a_link_that_python_fails() -> None:
    bad = failing_once()
    with streams({0: make_worker(CONFIG, TWICE, 0), 1: bad}) as (links, _):
        pool = stream_pool(TWICE, links)
        by_python = pool.begin(1, X_TD.T.contiguous().T, ROUTING)
        deadline = time.monotonic() + 30
        while not all(link.frames is not None and link.frames.is_quiet for link in links.values()):
            assert time.monotonic() < deadline
            for link in links.values():
                link.look()
        by_c = pool.begin(1, X_TD, ROUTING)
        assert isinstance(by_c, NativeDispatch)
        assert torch.equal(pool.finish(by_python), EXPECTED)
        assert torch.equal(pool.finish(by_c), EXPECTED)
        assert pool.stats().workers[1].failures == {FailureReason.RAISED: 1}
        assert is_native(pool)
        pool.close()
