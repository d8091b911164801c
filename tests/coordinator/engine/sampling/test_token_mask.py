"""Allowed tokens and forbidden sequences: exact, whatever else shapes the logits."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages.errors import NoTokenLeftError
from coordinator.engine.messages.request import TokenRules
from coordinator.engine.sampling.sampler import Sampler
from coordinator.engine.sampling.sampling_row import SamplingRow
from coordinator.engine.sampling.token_mask import TokenMask
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.sampling.test_sampler import Only

VOCAB = 12
ids = st.integers(0, VOCAB - 1)
sequences = st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=6)


def mask_of(
    allowed: Iterable[int] = (), forbidden: Iterable[tuple[int, ...]] = (), ends: Iterable[int] = ()
) -> TokenMask:
    return TokenMask(TokenRules(tuple(allowed), tuple(forbidden), tuple(ends)), VOCAB)


def contains(output: list[int], sequence: tuple[int, ...]) -> bool:
    return any(tuple(output[i : i + len(sequence)]) == sequence for i in range(len(output)))


@given(
    allowed=st.lists(ids, max_size=8),
    forbidden=sequences,
    prompt=st.lists(ids, max_size=4),
    seed=st.integers(0, 99),
)
def test_only_allowed_ids_appear_and_no_forbidden_sequence(
    allowed: list[int], forbidden: list[tuple[int, ...]], prompt: list[int], seed: int
) -> None:
    mask, sampler = mask_of(allowed, forbidden), Sampler(VOCAB)
    output: list[int] = []
    generator = torch.Generator().manual_seed(seed)
    params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=seed, logit_bias=((3, 50.0),))
    prompt = [*prompt, 0]
    for _ in range(12):
        row = SamplingRow(0, params, 0, [*prompt, *output], len(prompt), None, mask)
        drawn = sampler.draw(torch.randn(1, VOCAB, generator=generator), [row])
        token_id = drawn.token_ids[0]
        if token_id is None:
            # Then nothing could have been drawn: every id would break a rule.
            assert isinstance(drawn.failures[0], NoTokenLeftError)
            for other in range(VOCAB):
                assert (allowed and other not in allowed) or any(
                    contains([*output, other], sequence) for sequence in forbidden
                )
            return
        output.append(token_id)
        assert not allowed or token_id in allowed
        assert not any(contains(output, sequence) for sequence in forbidden)


@given(allowed=st.lists(ids, max_size=6), forbidden=sequences, output=st.lists(ids, max_size=5))
def test_nothing_is_forbidden_without_a_rule(
    allowed: list[int], forbidden: list[tuple[int, ...]], output: list[int]
) -> None:
    mask = np.ones(VOCAB, np.bool_)
    expected = [
        (not allowed or token_id in allowed)
        and not any(tuple([*output, token_id][-len(each) :]) == each for each in forbidden)
        for token_id in range(VOCAB)
    ]
    try:
        mask_of(allowed, forbidden).apply(mask, [7, *output], 1)
    except NoTokenLeftError:
        assert not any(expected)
    else:
        assert mask.tolist() == expected


def test_the_prompt_is_no_part_of_a_forbidden_sequence() -> None:
    mask = np.ones(VOCAB, np.bool_)
    mask_of(forbidden=[(4, 5)]).apply(mask, [4], 1)
    assert mask.all()
    mask_of(forbidden=[(4, 5)]).apply(mask, [1, 4], 1)
    assert np.flatnonzero(~mask).tolist() == [5]


def draw(matcher: Only | None, token_mask: TokenMask | None) -> int | str | None:
    row = SamplingRow(0, SamplingParams(0.0, 0, 1.0), 0, [1], 1, matcher, token_mask)
    other = SamplingRow(1, SamplingParams(0.0, 0, 1.0), 0, [1], 1, None)
    drawn = Sampler(VOCAB).draw(torch.arange(VOCAB).repeat(2, 1).float(), [row, other])
    assert drawn.token_ids[1] == VOCAB - 1, "a neighbour sees nothing of it"
    return str(drawn.failures[0]) if 0 in drawn.failures else drawn.token_ids[0]


def test_rules_and_a_constraint_hold_together() -> None:
    assert draw(None, None) == 11
    assert draw(Only(2, 3, 7), None) == 7
    assert draw(Only(2, 3, 7), mask_of(allowed=[2, 3])) == 3
    assert draw(Only(2, 3, 7), mask_of(forbidden=[(7,), (3,)])) == 2
    assert draw(Only(2, 3), mask_of(allowed=[4])) == (
        "allowed_token_ids, bad_words and the constraint leave no token to draw"
    )


def test_the_end_of_a_constraint_stays_allowed() -> None:
    end = 0
    assert draw(Only(end, 5), mask_of(allowed=[4], ends=[end])) == end
    assert isinstance(draw(Only(5), mask_of(allowed=[4], ends=[end])), str), "where it may end only"


def test_rules_that_leave_nothing_are_known_at_once() -> None:
    assert not TokenRules((3,), ((3,),)).leave_some(VOCAB)
    assert TokenRules((3,), ((3, 3),)).leave_some(VOCAB)
    assert TokenRules((3,), ((3,),), (0,)).leave_some(VOCAB)
    with pytest.raises(NoTokenLeftError):
        mask_of(allowed=[3], forbidden=[(3,)]).apply(np.ones(VOCAB, np.bool_), [1], 1)
