"""Experts in slices on any workers say what they say in one process, to the last bit."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_workers.dispatch.native_way import HAS_NATIVE, NativeDispatch
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.slices import SlicedDispatches
from expert_workers.placement.placement import Placement, Share, place
from expert_workers.transports.base import Answerer, Link
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog
from tests.examples import examples
from tests.expert_workers.dispatch.test_native_capsule import experts_in_c, rows_in_c
from tests.expert_workers.dispatch.test_native_way import CONFIG, ROUTING, X_TD, Gate
from tests.expert_workers.fake_links import FakeLink, FakePlane, FakeRescuer, GivenLinks, routes_over
from tests.expert_workers.fakes import (
    TORCH,
    FakeSource,
    make_routing,
    make_rows,
    make_sliced,
    make_spec,
)
from tests.expert_workers.stream_fakes import FakeMachine, streams
from tests.native import KERNELS

if HAS_NATIVE:
    from expert_workers.dispatch.native import _dispatch

needs_dispatch = pytest.mark.skipif(not HAS_NATIVE, reason="built without a C compiler")


@cache
def catalog_of(num_slices: int) -> Catalog:
    return Catalog.of_checkpoint(CONFIG).sliced(num_slices)


def placed(num_slices: int, num_workers: int, replicas: int = 1) -> Placement:
    shares = [Share(rank) for rank in range(num_workers)]
    return place(catalog_of(num_slices).keys, shares, min(replicas, num_workers))


def make_worker(
    placement: Placement,
    num_slices: int,
    rank: int,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = TORCH,
) -> ExpertWorker:
    modules = {module.key: module for module in catalog_of(num_slices).modules}
    worker = ExpertWorker(make_spec(rank, kernels, dtype), FakeSource(CONFIG, dtype, kernels))
    worker.load([modules[key] for key in placement.experts_of(rank)])
    return worker


def make_workers(placement: Placement, num_slices: int, kernels: Kernels = TORCH) -> dict[int, Answerer]:
    return {
        rank: make_worker(placement, num_slices, rank, kernels=kernels) for rank in sorted(placement.ranks)
    }


@contextmanager
def stream_world(
    workers: Mapping[int, Answerer], placement: Placement, num_slices: int
) -> Iterator[tuple[ExpertPool, SlicedDispatches, FakeMachine]]:
    with streams(workers) as (links, machine):
        pool = ExpertPool(
            catalog_of(num_slices), GivenLinks(StreamPlane()), PoolOptions(num_slices=num_slices)
        )
        pool.publish(routes_over(pool, 1, links, placement.holders))
        yield pool, SlicedDispatches(pool, num_slices), machine
        pool.close()


@settings(deadline=None, max_examples=examples(100))
@given(
    st.sampled_from([2, 3, 4]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_they_equal_local_experts_to_the_last_bit(
    num_slices: int, num_workers: int, replicas: int, num_tokens: int, top_k: int, dtype: torch.dtype
) -> None:
    placement, plane = placed(num_slices, num_workers, replicas), FakePlane()
    links: dict[int, Link] = {
        rank: FakeLink(rank, make_worker(placement, num_slices, rank, dtype), plane)
        for rank in placement.ranks
    }
    pool = ExpertPool(
        catalog_of(num_slices), GivenLinks(plane), PoolOptions(num_slices=num_slices), FakeRescuer()
    )
    pool.publish(routes_over(pool, 1, links, placement.holders))
    x_TD, routing = make_rows(num_tokens, CONFIG, dtype), make_routing(num_tokens, CONFIG.n_experts, top_k)
    y_TD = SlicedDispatches(pool, num_slices).forward(1, x_TD, routing)
    assert y_TD.dtype == dtype
    assert torch.equal(y_TD, make_sliced(CONFIG, num_slices, dtype).forward(1, x_TD, routing))


@needs_dispatch
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("num_slices", "num_workers"), [(2, 1), (2, 2), (2, 3), (3, 2), (4, 4)])
@pytest.mark.parametrize("top_k", [2, 4])
def test_in_c_they_have_the_same_bits(name: str, num_slices: int, num_workers: int, top_k: int) -> None:
    kernels = choose_kernels(name, "cpu", 1)  # type: ignore[arg-type]
    placement = placed(num_slices, num_workers)
    local = make_sliced(CONFIG, num_slices, kernels=kernels)
    with stream_world(make_workers(placement, num_slices, kernels), placement, num_slices) as world:
        _, sliced, _ = world
        for num_tokens in (1, 9):
            x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, top_k)
            # Two at once, as micro-batches are.
            begun = [sliced.begin(layer, x_TD, routing) for layer in (0, 1)]
            assert all(isinstance(part, NativeDispatch) for each in begun for part in each.parts)
            for layer, each in enumerate(begun):
                assert torch.equal(sliced.finish(each), local.forward(layer, x_TD, routing))


def begin_in_c(sliced: SlicedDispatches, pool: ExpertPool) -> None:
    """As a step without the interpreter, as soon as C has taken up the routes."""
    experts, rows = experts_in_c(pool), rows_in_c(X_TD)
    deadline = time.monotonic() + 30
    while experts.begin(experts.self, rows) != 0:
        assert time.monotonic() < deadline
        sliced.forward(1, X_TD, ROUTING)


@needs_dispatch
@pytest.mark.parametrize(("num_slices", "num_workers"), [(2, 2), (3, 2), (2, 1)])
def test_a_step_without_the_interpreter_reaches_all_slices(num_slices: int, num_workers: int) -> None:
    placement = placed(num_slices, num_workers)
    expected = make_sliced(CONFIG, num_slices).forward(1, X_TD, ROUTING)
    with stream_world(make_workers(placement, num_slices), placement, num_slices) as (pool, sliced, _):
        begin_in_c(sliced, pool)
        experts, y_TD = experts_in_c(pool), torch.empty_like(X_TD)
        assert experts.finish(experts.self, y_TD.data_ptr()) == 0
        assert torch.equal(y_TD, expected)
        assert experts.finish(experts.self, y_TD.data_ptr()) != 0, "nothing is on its way"


@needs_dispatch
def test_what_c_cannot_finish_of_some_slices_the_pool_does() -> None:
    placement = placed(2, 2, 2)
    expected = make_sliced(CONFIG, 2).forward(1, X_TD, ROUTING)
    gate = Gate(make_worker(placement, 2, 1))
    workers: dict[int, Answerer] = {0: make_worker(placement, 2, 0), 1: gate}
    with stream_world(workers, placement, 2) as (pool, sliced, machine):
        experts, y_TD, deadline = experts_in_c(pool), torch.empty_like(X_TD), time.monotonic() + 30
        gate.goes.clear()
        while experts.begin(experts.self, rows_in_c(X_TD)) != 0:
            assert time.monotonic() < deadline
            gate.goes.set()
            sliced.forward(1, X_TD, ROUTING)
            gate.goes.clear()
        gate.goes.set()
        gate.change = lambda reply: reply._replace(tag=reply.tag + 1)
        machine.kill(1)
        assert experts.finish(experts.self, y_TD.data_ptr()) != 0
        assert torch.equal(sliced.finish(sliced.take_over(1, X_TD, ROUTING)), expected)
        assert sum(pool.stats().workers[1].failures.values()) == 1


@needs_dispatch
def test_what_c_cannot_even_begin_of_some_slices_the_pool_does() -> None:
    from_slice = {key: (key[1] % 2,) for key in catalog_of(2).keys}
    placement = Placement(from_slice)
    expected = make_sliced(CONFIG, 2).forward(1, X_TD, ROUTING)
    with stream_world(make_workers(placement, 2), placement, 2) as (pool, sliced, _):
        begin_in_c(sliced, pool)
        experts, y_TD = experts_in_c(pool), torch.empty_like(X_TD)
        assert experts.finish(experts.self, y_TD.data_ptr()) == 0
        # The second slice's worker gets no rows of C's; Python sees that there is no other.
        without_rows(pool, 1)
        assert experts.begin(experts.self, rows_in_c(X_TD)) == 0
        assert experts.finish(experts.self, y_TD.data_ptr()) != 0
        assert torch.equal(sliced.finish(sliced.take_over(1, X_TD, ROUTING)), expected)
        assert torch.equal(sliced.forward(1, X_TD, ROUTING), expected)


def without_rows(pool: ExpertPool, rank: int) -> None:
    """C gives a worker none."""
    assert pool._native is not None
    costs = tuple(-1.0 if each == rank else 1.0 for each in range(2))
    times = (60.0,) * _dispatch.NUM_SIZES
    _dispatch.pace(pool._native._native, costs, times, (-1.0,) * _dispatch.NUM_SIZES, 1e12)


@pytest.mark.parametrize("num", [2, 3, 4])
def test_each_of_as_many_workers_has_one_slice_of_every_expert(num: int) -> None:
    """So all have the same to do whatever the routing, and each is asked once a layer."""
    loads: dict[ExpertKey, float] = {key: 1.0 + key[1] // num for key in catalog_of(num).keys}
    shares = [Share(rank) for rank in range(num)]
    for known in (None, loads):
        placement = place(catalog_of(num).keys, shares, 1, loads=known)
        for rank in range(num):
            assert {slot % num for _, slot in placement.experts_of(rank)} == {rank}
