"""Sampler: every row gets what it asked for, and no row sees its neighbours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.sampling.constraint import Matcher
from coordinator.engine.sampling.sampler import Sampler
from coordinator.engine.sampling.sampling_row import SamplingRow
from moe_model.sampling.params import SamplingParams

VOCAB = 40


class Only:
    """A matcher that allows some tokens."""

    may_end = must_end = is_free = False

    def __init__(self, *token_ids: int) -> None:
        self._token_ids = token_ids

    def fill_mask(self, mask_W: np.ndarray) -> None:
        bits = np.zeros(len(mask_W) * 32, np.uint8)
        bits[list(self._token_ids)] = 1
        mask_W[:] = np.packbits(bits, bitorder="little").view("<i4")

    def advance(self, token_id: int) -> None:
        raise AssertionError("drawing moves nothing")


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.3]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.7]),
    min_p=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.6]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (7, -100.0))]),
)
ROWS = st.lists(
    st.tuples(
        PARAMS,
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
        st.lists(st.integers(0, VOCAB - 1), max_size=6),
        st.sampled_from([None, (4,), (1, 2, 39)]),
    ),
    min_size=1,
    max_size=6,
)


Wanted = list[tuple[SamplingParams, list[int], list[int], tuple[int, ...] | None]]


def rows_of(wanted: Wanted) -> list[SamplingRow]:
    return [
        SamplingRow(key, params, 0, [*prompt, *output], len(prompt), None if only is None else Only(*only))
        for key, (params, prompt, output, only) in enumerate(wanted)
    ]


def naive(logits_V: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    """The definition, token by token."""
    result = logits_V.clone()
    for token_id, bias in row.params.logit_bias:
        result[token_id] += bias
    output = row.token_ids[row.num_prompt :]
    for token_id in set(row.token_ids):
        penalty = row.params.repetition_penalty
        result[token_id] = result[token_id] / penalty if result[token_id] > 0 else result[token_id] * penalty
    for token_id in set(output):
        result[token_id] -= row.params.frequency_penalty * output.count(token_id)
        result[token_id] -= row.params.presence_penalty
    return result


@settings(deadline=None)
@given(ROWS, st.integers(0, 99))
def test_a_row_draws_the_same_alone_in_a_batch_and_again(wanted: Wanted, seed: int) -> None:
    logits_RV = torch.randn(len(wanted), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits_RV.clone()
    rows, sampler = rows_of(wanted), Sampler(VOCAB)
    drawn = sampler.draw(logits_RV, rows).token_ids
    assert sampler.draw(logits_RV, rows).token_ids == drawn, "a step that runs twice"
    assert torch.equal(logits_RV, before)
    for number, row in enumerate(rows):
        assert Sampler(VOCAB).draw(logits_RV[number : number + 1], [row]).token_ids == [drawn[number]]


@settings(deadline=None)
@given(ROWS, st.integers(0, 99))
def test_logits_change_as_the_definition_says(wanted: Wanted, seed: int) -> None:
    logits_RV = torch.randn(len(wanted), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    rows = [replace(row, matcher=None) for row in rows_of(wanted)]
    changed_RV = Sampler(VOCAB)._changed(logits_RV, rows, {})
    for row, changed_V, logits_V in zip(rows, changed_RV, logits_RV, strict=True):
        torch.testing.assert_close(changed_V, naive(logits_V, row))


@settings(deadline=None)
@given(ROWS, st.lists(st.integers(0, VOCAB - 1), max_size=5), st.integers(0, 99))
def test_a_drafted_row_draws_what_it_would_if_the_draft_were_there(
    wanted: Wanted, draft: list[int], seed: int
) -> None:
    """After each of its tokens, in one batch; and nothing of it is kept."""
    rows = [replace(row, matcher=None) for row in rows_of(wanted)]
    ends = range(len(draft) + 1)
    drafted = [row.after(tuple(draft[:end])) for row in rows for end in ends]
    there = [
        replace(row, key=len(ends) * row.key + end, token_ids=[*row.token_ids, *draft[:end]])
        for row in rows
        for end in ends
    ]
    logits_RV = torch.randn(len(drafted), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    sampler = Sampler(VOCAB)
    for _ in range(2):
        assert sampler.draw(logits_RV, drafted) == Sampler(VOCAB).draw(logits_RV, there)
    first = logits_RV[: len(rows)]
    assert sampler.draw(first, rows) == Sampler(VOCAB).draw(first, rows)


def test_counts_follow_a_sequence_that_grows_and_forget_one_that_is_gone() -> None:
    sampler, tokens = Sampler(VOCAB), [1, 2]
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    logits_RV = torch.zeros(1, VOCAB)
    logits_RV[0, 5] = 2.5
    drawn = []
    for _ in range(4):
        (token,) = sampler.draw(logits_RV, [SamplingRow(7, params, 0, tokens, 2, None)]).token_ids
        assert token is not None
        drawn.append(token)
        tokens.append(token)
    assert drawn == [5, 5, 5, 0], "each time it costs one more"
    sampler.forget(7)
    assert sampler.draw(logits_RV, [SamplingRow(8, params, 0, [1, 2], 2, None)]).token_ids == [5]


def test_masks_are_kept_whatever_the_logits_say() -> None:
    logits_RV = torch.zeros(2, VOCAB)
    logits_RV[:, 9] = 100.0
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature, seed=3)
        rows = [SamplingRow(0, params, 0, [1], 1, Only(39)), SamplingRow(1, params, 0, [1], 1, None)]
        assert Sampler(VOCAB).draw(logits_RV, rows).token_ids == [39, 9]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_draws_nothing_and_disturbs_nobody(value: float) -> None:
    logits_RV = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(1.0, seed=5, presence_penalty=0.5)
    rows = [SamplingRow(key, params, 0, [1, 2], 1, None) for key in range(3)]
    expected = Sampler(VOCAB).draw(logits_RV, rows).token_ids
    logits_RV[1, 4] = value
    drawn = Sampler(VOCAB).draw(logits_RV, rows).token_ids
    assert drawn == [expected[0], None, expected[2]]


class Broken:
    """A Matcher whose grammar has become too much."""

    may_end = must_end = is_free = False

    def fill_mask(self, mask_W: np.ndarray) -> None:
        raise ConstraintError("too complex")

    def advance(self, token_id: int) -> None:
        return None


def test_a_constraint_that_cannot_go_on_fails_its_own_row() -> None:
    logits_RV = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(1.0, seed=5)
    matchers: list[Matcher | None] = [Only(7), Broken(), None]
    rows = [SamplingRow(key, params, 0, [1, 2], 1, matcher) for key, matcher in enumerate(matchers)]
    drawn = Sampler(VOCAB).draw(logits_RV, rows)
    alone = Sampler(VOCAB).draw(logits_RV[2:], rows[2:]).token_ids
    assert drawn.token_ids == [7, None, *alone]
    assert [str(error) for error in drawn.failures.values()] == ["too complex"]
    assert list(drawn.failures) == [1]


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-45, 1e-38, 2.0])
def test_penalties_of_any_size_draw_a_token_that_there_is(penalty: float) -> None:
    logits_RV = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(2)) * 5
    for seed in range(20):
        params = SamplingParams(1.0, seed=seed, repetition_penalty=penalty)
        row = SamplingRow(0, params, 0, list(range(30)), 2, None)
        (token,) = Sampler(VOCAB).draw(logits_RV, [row]).token_ids
        assert token is not None
        assert 0 <= token < VOCAB


def test_counts_follow_sequences_of_any_length() -> None:
    sampler = Sampler(VOCAB)
    params = SamplingParams(1.0, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1)
    generator = torch.Generator().manual_seed(3)
    for length in (1, 60, 64, 65, 200, 500):
        logits_RV = torch.randn(2, VOCAB, generator=generator)
        tokens = [[(7 * i + key) % VOCAB for i in range(length + 3 * key)] for key in range(2)]
        rows = [SamplingRow(key, params, 0, tokens[key], 1, None) for key in range(2)]
        changed_RV = sampler._changed(logits_RV, rows, {})
        for row, changed_V, logits_V in zip(rows, changed_RV, logits_RV, strict=True):
            torch.testing.assert_close(changed_V, naive(logits_V, row))


KINDS = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    SamplingParams(temperature=0.7, top_k=20, min_p=0.05),
    SamplingParams(temperature=1.0, top_p=0.95),
    SamplingParams(temperature=0.9, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.3),
    SamplingParams(temperature=0.0, repetition_penalty=1.1),
    SamplingParams(temperature=1.5, logit_bias=((3, 5.0), (7, -100.0))),
)
# fmt: off
DRAWN = [
    223, 143, 167, 941, 873, 869, 853, 544, 460, 639, 635, 151, 527, 501, 261, 591,
    822, 136, 211, 30, 941, 230, 516, 422, 861, 381, 993, 599, 199, 231, 217, 206,
    290, 692, 277, 309, 94, 866, 4, 796,
]
# fmt: on


def test_the_tokens_are_those_of_version_0_1_0() -> None:
    """Of logits that are the same on every machine, together and, for their number, each alone."""
    vocab = 1000
    row_R1, column_V = torch.arange(len(DRAWN)).unsqueeze(1), torch.arange(vocab)
    mixed_RV = row_R1 * 7919 + column_V * 104729 + (column_V * column_V) % 8191 * (row_R1 + 3)
    logits_RV = (mixed_RV % 10007).float() / 1500
    rows = [
        SamplingRow(i, replace(KINDS[i % len(KINDS)], seed=i), i % 3, [5, 9, 9, 300 + i], 2, None)
        for i in range(len(DRAWN))
    ]
    assert Sampler(vocab).draw(logits_RV, rows).token_ids == DRAWN
    for number, row in enumerate(rows):
        alone = Sampler(vocab).draw(logits_RV[number : number + 1], [row])
        assert alone.token_ids == [DRAWN[number]]
    best = [number for number, row in enumerate(rows) if row.takes_best]
    together = Sampler(vocab).draw(logits_RV[best], [rows[number] for number in best])
    assert together.token_ids == [DRAWN[number] for number in best]


def test_rows_that_take_the_best_are_told_of_numbers_that_are_none() -> None:
    rows = [SamplingRow(key, SamplingParams(temperature=0), 0, [1], 1, None) for key in range(4)]
    logits_RV = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    best = logits_RV.argmax(dim=-1).tolist()
    logits_RV[0, 3], logits_RV[2, 9] = float("nan"), float("inf")
    logits_RV[3] = float("-inf")
    drawn = Sampler(VOCAB).draw(logits_RV, rows)
    assert drawn.token_ids == [None, best[1], None, None]
    assert sorted(drawn.failures) == [0, 2, 3]
