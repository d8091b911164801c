"""Loads and samplers by Zipf's law."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.layers.zipf_choice import draw_rows, expert_order, inclusion, zipf_inclusion, zipf_shares
from scaling.routing.loads import masked_zipf_loads, zipf_loads
from scaling.routing.sampler import Sampler
from tests.scaling.routing.shapes import shape


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 8))
def test_chances_add_up_and_are_in_proportion(n_experts: int, num_chosen: int, exponent: float) -> None:
    num_chosen = min(num_chosen, n_experts)
    shares_E = zipf_shares(n_experts, exponent)
    chances_E = inclusion(shares_E, num_chosen)
    assert chances_E.sum() == pytest.approx(num_chosen)
    assert (chances_E <= 1 + 1e-12).all()
    free = chances_E < 1
    ratios = chances_E[free] / shares_E[free]
    assert ratios == pytest.approx(ratios[:1].repeat(len(ratios)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 8), st.integers(0, 2**31))
def test_a_row_has_different_experts(n_experts: int, num_chosen: int, exponent: float, seed: int) -> None:
    num_chosen = min(num_chosen, n_experts)
    chances_E = zipf_inclusion(n_experts, num_chosen, exponent, 3, seed)
    ids_PC = draw_rows(chances_E, 128, 3, seed)
    assert ids_PC.shape == (128, num_chosen)
    assert all(len(set(row)) == num_chosen for row in ids_PC.tolist())
    assert int(ids_PC.max()) < n_experts


@pytest.mark.parametrize(("n_experts", "top_k", "exponent"), [(8, 2, 1.2), (256, 8, 1.0), (64, 8, 0.0)])
def test_experts_come_as_often_as_they_should(n_experts: int, top_k: int, exponent: float) -> None:
    ids_PC = draw_rows(zipf_inclusion(n_experts, top_k, exponent, 5, 1), 4096, 5, 1)
    counts_E = np.bincount(ids_PC.ravel(), minlength=n_experts)
    wanted_E = 4096 * zipf_inclusion(n_experts, top_k, exponent, 5, 1)
    # One row of each order at most, and mostly they cancel out.
    assert np.abs(counts_E - wanted_E).max() < 30
    # The definition, where no expert is in all rows: the r-th share is 1/r^s of the first one's.
    by_rank = (wanted_E / wanted_E.max())[expert_order(n_experts, 5, 1)]
    if exponent == 1.0:
        assert by_rank[by_rank < 1][:4] / by_rank[9] == pytest.approx(
            10.0 / (np.flatnonzero(by_rank < 1)[:4] + 1)
        )


def test_layers_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(expert_order(16, layer, seed)) for layer in range(4) for seed in range(4)}
    assert len(orders) == 16


def test_rows_stay_as_they_are() -> None:
    """A recorded table would say something else from then on."""
    ids_PC = draw_rows(zipf_inclusion(8, 2, 1.2, 1, 7), 64, 1, 7)
    assert ids_PC[:4].tolist() == [[0, 6], [3, 7], [1, 6], [4, 6]]


def test_loads_are_shares_of_the_law() -> None:
    loads_LE = zipf_loads(shape(), 1.2, 3)
    assert np.sum(loads_LE, axis=1) == pytest.approx([1.0, 1.0, 1.0])
    first = 1 / sum(rank**-1.2 for rank in range(1, 9))
    assert np.max(loads_LE, axis=1) == pytest.approx([first] * 3)
    masked_LE = masked_zipf_loads(shape(), 1.2, 3)
    assert np.max(masked_LE) == pytest.approx(0.25)


def test_a_sampler_draws_as_loads_say() -> None:
    sampler, rng = Sampler.of_zipf(shape(), 1.2, 3), np.random.default_rng(1)
    loads_LE = np.array(zipf_loads(shape(), 1.2, 3))
    for layer in range(3):
        rows_E = sampler.draw(layer, 50_000, rng)
        assert rows_E.sum() == 2 * 50_000
        assert rows_E / rows_E.sum() == pytest.approx(loads_LE[layer], abs=0.01)
    again = Sampler.of_loads(loads_LE.tolist(), 2, 0).draw(1, 50_000, rng)
    assert again / again.sum() == pytest.approx(loads_LE[1], abs=0.01)


def test_uniform_is_uniform() -> None:
    rows_E = Sampler.uniform(shape()).draw(0, 40_000, np.random.default_rng(1))
    assert rows_E / rows_E.sum() == pytest.approx([1 / 8] * 8, abs=0.01)


def test_no_rows_and_experts_that_nothing_goes_to() -> None:
    sampler = Sampler.of_loads([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]], 3, 0)
    assert sampler.draw(0, 0, np.random.default_rng(0)).tolist() == [0, 0, 0, 0]
    assert sampler.draw(0, 64, np.random.default_rng(0))[1:3].tolist() == [64, 64]
    assert sampler.draw(1, 6400, np.random.default_rng(0)) / 6400 == pytest.approx([0.75] * 4, abs=0.03)


def test_a_step_is_drawn_quickly() -> None:
    sampler, rng = Sampler.of_zipf(shape(layers=60, experts=256, top_k=8), 1.0, 0), np.random.default_rng(0)
    best = min(_seconds(sampler, rng) for _ in range(20))
    assert best < 0.02, "four times what it takes on a quiet machine"


def _seconds(sampler: Sampler, rng: np.random.Generator) -> float:
    started = time.perf_counter()
    for layer in range(60):
        sampler.draw(layer, 1000, rng)
    return time.perf_counter() - started
