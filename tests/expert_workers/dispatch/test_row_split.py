"""The rows of one expert at several of its holders: the same bits, and less to wait for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.dispatch.assign import LEAST_ROWS, assign, pieces
from expert_workers.dispatch.native_way import HAS_NATIVE, NativeDispatch
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.placement.placement import Placement
from expert_workers.transports.base import FailureReason
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog
from tests.expert_workers.fake_links import FakeLink, FakePlane, FakeRescuer, GivenLinks, fails, routes_over
from tests.expert_workers.fakes import (
    make_config,
    make_local,
    make_routing,
    make_rows,
    make_worker,
    placed,
)
from tests.expert_workers.stream_fakes import stream_pool, streams
from tests.native import needs_native

CONFIG = make_config()
SPLITS = PoolOptions(splits_rows=True, rescue_patience=0.05)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 600)), max_size=6),
    st.dictionaries(st.integers(0, 3), st.floats(0.1, 10)),
)
def test_pieces_are_all_rows_and_none_is_small(
    columns: list[tuple[int, int]], costs: dict[int, float]
) -> None:
    holders, counts = [tuple(range(num)) for num, _ in columns], [rows for _, rows in columns]
    sizes = pieces(holders, counts, costs)
    if sizes is None:
        sizes = [[rows] for rows in counts]
        assert all(
            rows < 2 * LEAST_ROWS or sum(rank in costs for rank in ranks) < 2
            for ranks, rows in zip(holders, counts, strict=True)
        )
    assert [sum(parts) for parts in sizes] == counts
    assert all(min(parts) >= LEAST_ROWS for parts in sizes if len(parts) > 1)


def test_what_two_workers_hold_is_dealt_out_by_what_a_row_costs() -> None:
    holders, counts = [(0, 1)], [900]
    for costs, share in (({0: 1.0, 1: 1.0}, 0.5), ({0: 1.0, 1: 3.0}, 0.75)):
        sizes = pieces(holders, counts, costs)
        assert sizes is not None
        segments, _ = assign(holders * len(sizes[0]), sizes[0], costs)
        assert sum(rows for _, rows in segments[0]) == pytest.approx(share * 900, abs=1)


def world(
    placement: Placement, options: PoolOptions = SPLITS
) -> tuple[ExpertPool, dict[int, FakeLink], FakeRescuer]:
    kernels, plane, rescuer = choose_kernels("native", "cpu", 1), FakePlane(), FakeRescuer()
    links = {
        rank: FakeLink(rank, make_worker(CONFIG, placement, rank, kernels=kernels), plane)
        for rank in sorted(placement.ranks)
    }
    pool = ExpertPool(Catalog.of_checkpoint(CONFIG), GivenLinks(plane), options, rescuer)
    pool.publish(routes_over(pool, 1, links, placement.holders))
    return pool, links, rescuer


def one_expert(num_tokens: int) -> Routing:
    """All tokens go to expert 2, and each to one other."""
    ids_TK = torch.tensor([[2, (0, 1, 3, 4)[n % 4]] for n in range(num_tokens)])
    return Routing(torch.rand(num_tokens, 2), ids_TK, torch.zeros(num_tokens, CONFIG.n_experts))


@needs_native
@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("num_tokens", [127, 700])
def test_split_rows_have_the_bits_of_whole_ones(num_workers: int, top_k: int, num_tokens: int) -> None:
    pool, links, _ = world(placed(2, 5, num_workers, 2))
    local = make_local(CONFIG, kernels=choose_kernels("native", "cpu", 1))
    x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, top_k)
    assert torch.equal(pool.forward(1, x_TD, routing), local.forward(1, x_TD, routing))
    counts = [sum(call.num_pairs for call in link.calls) for link in links.values()]
    assert sum(counts) == num_tokens * top_k
    if num_tokens == 700 and num_workers == 2:
        assert max(counts) < 0.55 * sum(counts)


@needs_native
def test_a_slot_is_named_once_in_a_call() -> None:
    pool, links, _ = world(placed(2, 5, 2, 2))
    pool.forward(1, make_rows(900, CONFIG), one_expert(900))
    calls = [call for link in links.values() for call in link.calls]
    assert len(calls) == 2
    assert all(any(slot == 2 for slot, _ in call.segments) for call in calls)
    assert all(len({slot for slot, _ in call.segments}) == len(call.segments) for call in calls)


@needs_native
def test_pieces_of_a_worker_that_fails_are_asked_of_another() -> None:
    pool, links, rescuer = world(placed(2, 5, 3, 2))
    local = make_local(CONFIG, kernels=choose_kernels("native", "cpu", 1))
    links[1].faults.append(fails(FailureReason.DIED))
    x_TD, routing = make_rows(700, CONFIG), one_expert(700)
    assert torch.equal(pool.forward(1, x_TD, routing), local.forward(1, x_TD, routing))
    assert rescuer.reasons == [(1, FailureReason.DIED)]
    assert pool.loads()[1, 2] == 700


@needs_native
@pytest.mark.skipif(not HAS_NATIVE, reason="built without a C compiler")
def test_c_leaves_to_python_what_is_to_be_cut() -> None:
    kernels, placement = choose_kernels("native", "cpu", 1), placed(2, 5, 2, 2)
    workers = {rank: make_worker(CONFIG, placement, rank, kernels=kernels) for rank in (0, 1)}
    local = make_local(CONFIG, kernels=kernels)
    with streams(workers) as (links, _):
        pool = stream_pool(placement, links, SPLITS)
        for num_tokens, is_native in ((127, True), (128, False), (60, True)):
            x_TD, routing = make_rows(num_tokens, CONFIG), one_expert(num_tokens)
            begun = pool.begin(1, x_TD, routing)
            assert isinstance(begun, NativeDispatch) is is_native
            assert torch.equal(pool.finish(begun), local.forward(1, x_TD, routing))
        pool.close()
