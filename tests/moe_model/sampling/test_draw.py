"""Filters and draws against a naive reference, one row at a time in float64.

Shapes: R rows, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.sampling.draw import (
    BLOCK,
    FROM_BLOCKS,
    FROM_VECTORS,
    MIN_DIVISOR,
    UNSURE,
    _among_all,
    best_columns,
    draw,
    draw_by_blocks,
    draw_by_columns,
    filter_min_p,
    filter_top_k,
    filter_top_p,
    sample,
    uniform,
    uniforms,
)
from moe_model.sampling.params import SamplingParams
from tests.examples import examples

LAST_UNIFORM = 1 - 2**-53
# Few distinct values, so that ties are common, and some far apart, so that masses vanish.
LOGIT = st.sampled_from([-60.0, -3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 8.0]) | st.floats(-20, 20, width=32)
ROW = st.lists(LOGIT, min_size=1, max_size=12)
UNIFORM = st.sampled_from([0.0, 0.5, LAST_UNIFORM]) | st.floats(0, LAST_UNIFORM)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 5e-324, 1e-40, 0.01, 0.8, 1.0, 2.0, 1e300]),
    top_k=st.sampled_from([0, 1, 2, 5, 12, 1000, 2**70]),
    top_p=st.sampled_from([1e-300, 0.1, 0.5, 0.9, 1 - 1e-12, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 0.05, 0.5, 1.0]),
)


# Weights are float32: what equals a limit but for their rounding may fall on either side of it.
ROUNDING = 1e-5


def kept(filtered_RV: Tensor, nothing: float = 0.0) -> list[list[int]]:
    """The columns that are left of weights, or of logits where `nothing` is minus infinity."""
    return [[i for i, value in enumerate(row) if value > nothing] for row in filtered_RV.tolist()]


def softmax(logits: Sequence[float]) -> list[float]:
    best = max(logits)
    weights = [math.exp(logit - best) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def divisor(p: SamplingParams) -> float:
    """What a temperature counts as: float32 cannot divide by less."""
    return max(p.temperature, MIN_DIVISOR)


def naive_support(row: Sequence[float], p: SamplingParams) -> set[int]:
    """The columns that the parameters leave, by the words of SamplingParams; without rounding tricks."""
    best = max(row)
    # What no float32 weight can tell apart is the same.
    scaled = [round(max((logit - best) / divisor(p), -1e6), 6) for logit in row]
    columns = list(range(len(row)))
    if p.top_k:
        kth = sorted(row, reverse=True)[min(p.top_k, len(row)) - 1]
        columns = [i for i in columns if row[i] >= kth]
    if p.top_p < 1:
        columns.sort(key=lambda i: (-scaled[i], i))
        probs = softmax([scaled[i] for i in columns])
        columns = [i for n, i in enumerate(columns) if n == 0 or math.fsum(probs[:n]) < p.top_p]
    return {i for i in columns if scaled[i] >= (math.log(p.min_p) if p.min_p else -math.inf)}


@given(ROW, PARAMS, UNIFORM)
@settings(max_examples=examples(300))
def test_a_draw_is_one_the_filters_left_and_has_mass(row: list[float], p: SamplingParams, u: float) -> None:
    (token,) = sample(torch.tensor([row]), [p], [u])
    if p.temperature == 0:
        assert token == row.index(max(row))
        return
    wide = replace(p, top_p=min(1.0, p.top_p + ROUNDING), min_p=p.min_p * (1 - ROUNDING))
    support = naive_support(row, wide)
    assert token in support
    best = max(row)
    assert (row[token] - best) / divisor(p) > -800, "a column without mass was drawn"


@given(ROW, PARAMS.filter(lambda p: p.temperature > 0))
def test_the_ends_of_the_interval_draw_the_ends_of_the_support(row: list[float], p: SamplingParams) -> None:
    low, high = sample(torch.tensor([row, row]), [p, p], [0.0, LAST_UNIFORM])
    assert low <= high
    top_p, min_p = max(1e-300, p.top_p - ROUNDING), min(1.0, p.min_p * (1 + ROUNDING))
    narrow = naive_support(row, replace(p, top_p=top_p, min_p=min_p))
    heavy = [i for i in narrow if (row[i] - max(row)) / divisor(p) > -30]
    assert low <= min(heavy)
    assert high >= max(heavy)


@given(st.lists(st.tuples(PARAMS, UNIFORM), min_size=1, max_size=8), st.data())
def test_a_batch_equals_its_rows_one_by_one(
    rows: list[tuple[SamplingParams, float]], data: st.DataObject
) -> None:
    vocab = data.draw(st.integers(1, 12))
    logits = [data.draw(st.lists(LOGIT, min_size=vocab, max_size=vocab)) for _ in rows]
    params, uniforms = [p for p, _ in rows], [u for _, u in rows]
    together = sample(torch.tensor(logits), params, uniforms)
    alone = [
        sample(torch.tensor([row]), [p], [u])[0] for row, p, u in zip(logits, params, uniforms, strict=True)
    ]
    assert together == alone


@given(st.lists(ROW.filter(lambda row: len(row) >= 4).map(lambda row: row[:4]), min_size=1, max_size=5))
def test_top_k_keeps_ties_and_is_off_at_zero_and_beyond_the_vocabulary(rows: list[list[float]]) -> None:
    logits_RV = torch.tensor(rows)
    for top_k in (0, 1, 2, 4, 5, 1000):
        got = kept(filter_top_k(logits_RV, torch.full((len(rows),), top_k)), -math.inf)
        for row, columns in zip(logits_RV.tolist(), got, strict=True):
            kth = sorted(row, reverse=True)[min(top_k or 4, 4) - 1]
            assert columns == [i for i in range(4) if row[i] >= kth]


def test_top_k_is_the_rows_own() -> None:
    logits_RV = torch.tensor([[1.0, 3.0, 2.0]] * 4)
    left = kept(filter_top_k(logits_RV, torch.tensor([1, 0, 2, 9])), -math.inf)
    assert left == [[1], [0, 1, 2], [1, 2], [0, 1, 2]]


def test_top_p_keeps_a_token_while_the_mass_before_it_is_less() -> None:
    weights_RV = torch.tensor([[1.0, 0.25, 0.5, 0.25]]).repeat(6, 1)
    top_p_R = torch.tensor([1e-9, 0.49, 0.6, 0.8, 0.9, 1.0], dtype=torch.float64)
    assert kept(filter_top_p(weights_RV, top_p_R)) == [
        [0],
        [0],
        [0, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]


def test_top_p_takes_equals_in_the_order_of_their_ids() -> None:
    assert kept(filter_top_p(torch.ones(1, 10), torch.tensor([0.35]))) == [[0, 1, 2, 3]]


def test_top_p_keeps_the_most_likely_ones() -> None:
    weights_RV = (torch.randn(20, 300) * 3).exp()
    for columns, row in zip(kept(filter_top_p(weights_RV, torch.full((20,), 0.3))), weights_RV, strict=True):
        best = row.topk(len(columns)).indices.sort().values.tolist()
        assert columns == best


def test_min_p_is_relative_to_the_best() -> None:
    weights_RV = torch.tensor([[1.0, 0.5, 0.4, 0.1]]).repeat(4, 1)
    assert kept(filter_min_p(weights_RV, torch.tensor([0.0, 0.1001, 0.45, 1.0]))) == [
        [0, 1, 2, 3],
        [0, 1, 2],
        [0, 1],
        [0],
    ]


def test_greedy_ignores_the_filters_and_takes_the_first_of_equals() -> None:
    p = SamplingParams(temperature=0, top_k=1, top_p=0.1, min_p=0.9)
    assert sample(torch.tensor([[1.0, 5.0, 5.0, 2.0]]), [p], [LAST_UNIFORM]) == [1]


@pytest.mark.parametrize("uniforms", [0.0, 0.3, LAST_UNIFORM])
def test_a_column_of_mass_zero_is_never_drawn(uniforms: float) -> None:
    inf = -math.inf
    logits_RV = torch.tensor([[inf, 0.0, inf, -800.0, 1.0, inf], [2.0, inf, inf, inf, inf, inf]])
    low, only = draw(logits_RV.exp(), torch.full((2,), uniforms, dtype=torch.float64)).tolist()
    assert low in (1, 4)
    assert only == 0


@pytest.mark.parametrize(
    ("p", "vocab"),
    [
        (SamplingParams(), 6),
        (SamplingParams(temperature=0.7, top_k=4), 6),
        (SamplingParams(temperature=1.4, top_p=0.9, min_p=0.02), 8),
    ],
)
def test_the_empirical_distribution_is_the_asked_one(p: SamplingParams, vocab: int) -> None:
    num_draws = 20_000
    row = torch.randn(vocab)
    uniforms = [uniform(7, 0, position) for position in range(num_draws)]
    counts = Counter(sample(row.repeat(num_draws, 1), [p] * num_draws, uniforms))
    support = sorted(naive_support(row.tolist(), p))
    probs = softmax([row[i].item() / p.temperature for i in support])
    assert set(counts) == set(support)
    expected = [probability * num_draws for probability in probs]
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in zip(support, expected, strict=True))
    # The 99.99 % quantile for up to 7 degrees of freedom; the counters are fixed, so this never flakes.
    assert chi_square < 29.9


def test_the_counter_gives_the_numbers_it_has_always_given() -> None:
    """Frozen: a change would change every seeded generation."""
    assert [uniform(*counter) for counter in FROZEN] == list(FROZEN.values())


FROZEN = {
    (0, 0, 0): 0.13870941014555427,
    (1, 0, 0): 0.6935121390102292,
    (0, 1, 0): 0.2691303195904541,
    (0, 0, 1): 0.18436667429957676,
    (42, 3, 511): 0.39603313498298487,
    (18446744073709551615, 7, 100000): 0.2509013806431216,
}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20), st.integers(0, 2**32))
def test_the_counter_gives_numbers_below_one(seed: int, sequence: int, position: int) -> None:
    number = uniform(seed, sequence, position)
    assert 0 <= number < 1
    assert number == uniform(seed, sequence, position)


def test_the_parts_of_the_counter_are_not_interchangeable() -> None:
    counters = [(s, q, p) for s in range(12) for q in range(12) for p in range(12)]
    numbers = {uniform(*counter) for counter in counters}
    assert len(numbers) == len(counters)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        SamplingParams(**{field: bad})  # type: ignore[arg-type]


def test_golden_top_k_filter(golden: dict[str, Tensor]) -> None:
    logits_RV = golden["filter.logits"]
    filtered_RV = filter_top_k(logits_RV, torch.full((len(logits_RV),), 7))
    assert torch.equal(filtered_RV, golden["filter.top_k_7"])


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 3), max_size=2 * FROM_VECTORS))
def test_many_numbers_are_the_same_as_one_by_one(parts: list[tuple[int, int, int]]) -> None:
    columns = list(zip(*parts, strict=True)) if parts else [(), (), ()]
    assert uniforms(*columns) == [uniform(*part) for part in parts]


@settings(deadline=None, max_examples=examples(150))
@given(
    st.integers(0, 10_000),
    st.sampled_from([30, 300, 2000]),
    st.sampled_from([0, 1, 5, 250, 1000]),
    st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    st.sampled_from([0.0, 0.05]),
    st.booleans(),
)
def test_looking_at_the_best_columns_changes_nothing(
    seed: int, vocab: int, top_k: int, top_p: float, min_p: float, has_ties: bool
) -> None:
    """The definition looks at all of them; equals stand at every cut."""
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(4, vocab, generator=generator) * (3 if seed % 2 else 0.1)
    if has_ties:
        logits_RV = logits_RV.round(decimals=1)
    params = [SamplingParams(0.8, min(top_k, vocab), top_p, min_p, row) for row in range(4)]
    numbers = torch.rand(4, generator=generator).tolist()
    expected = _among_all(logits_RV, params, numbers).tolist()
    assert sample(logits_RV, params, numbers) == expected


# Masses that are far apart, and many without any.
WEIGHTS = st.builds(
    lambda *values: random_weights(*values),
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.sampled_from([1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000]),
    st.sampled_from([0.0, 1.0, 10.0, 30.0]),
    st.sampled_from([0.01, 0.5, 1.0]),
)


def random_weights(seed: int, rows: int, vocab: int, spread: float, kept: float) -> Tensor:
    """As after filters: 1 for the best, and some are 0."""
    generator = torch.Generator().manual_seed(seed)
    logits_RV = spread * torch.randn(rows, vocab, generator=generator)
    weights_RV = (logits_RV - logits_RV.amax(dim=-1, keepdim=True)).exp()
    return weights_RV * ((torch.rand(rows, vocab, generator=generator) < kept) | (weights_RV == 1))


@given(WEIGHTS, st.integers(0, 10**6))
def test_sums_by_blocks_draw_the_same_where_they_are_sure(weights_RV: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers_R = torch.rand(len(weights_RV), generator=generator, dtype=torch.float64)
    column_R, is_unsure_R = draw_by_blocks(weights_RV, numbers_R)
    expected_R = draw_by_columns(weights_RV, numbers_R)
    assert torch.equal(column_R[~is_unsure_R], expected_R[~is_unsure_R])
    assert not is_unsure_R.any(), "one in a hundred million"


@pytest.mark.parametrize("vocab", [BLOCK, 5 * BLOCK + 7])
def test_a_number_on_a_border_is_left_to_the_sums_by_columns(vocab: int) -> None:
    """On it and beside it as far as rounding reaches; not a thousandth of a column away from it."""
    weights_RV = torch.full((vocab, vocab), 0.1)
    border_R = torch.arange(vocab, dtype=torch.float64) / vocab
    for shift in (0.0, UNSURE / 3, -UNSURE / 3):
        near_R = (border_R + shift).clamp(0, LAST_UNIFORM)
        column_R, is_unsure_R = draw_by_blocks(weights_RV, near_R)
        assert is_unsure_R.all()
        assert ((column_R >= 0) & (column_R < vocab + BLOCK)).all()
    column_R, is_unsure_R = draw_by_blocks(weights_RV, border_R + 1e-3 / vocab)
    assert not is_unsure_R.any()
    assert column_R.tolist() == list(range(vocab))


def test_many_rows_are_drawn_as_each_alone_on_borders_as_well() -> None:
    """Together they are summed up by blocks, alone by columns."""
    vocab = 1000
    weights_RV = random_weights(3, 2 * FROM_BLOCKS // vocab, vocab, 10.0, 1.0)
    ends_RV = weights_RV.cumsum(dim=-1, dtype=torch.float64)
    numbers_R = (ends_RV / ends_RV[:, -1:]).diagonal().clamp(max=LAST_UNIFORM)
    numbers_R[0] = 0.0
    together = draw(weights_RV, numbers_R)
    alone = [draw(weights_RV[row : row + 1], numbers_R[row : row + 1]) for row in range(len(weights_RV))]
    assert together.tolist() == torch.cat(alone).tolist()


@given(st.lists(st.lists(LOGIT, min_size=6, max_size=6), min_size=1, max_size=4))
def test_the_best_column_is_the_first_of_equals_and_shows_what_is_no_number(rows: list[list[float]]) -> None:
    assert best_columns(torch.tensor(rows)).tolist() == [row.index(max(row)) for row in rows]
    rows[0][3], rows[-1][-1] = math.nan, math.inf
    best_R = best_columns(torch.tensor(rows)).tolist()
    assert best_R[0] == 3
    assert len(rows) == 1 or best_R[-1] == 5
