"""PromptLookup: what followed the longest of the last n-grams that stood before, however the tokens came."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.core.drafts import LONGEST, TAKEN_AT_ONCE, PromptLookup

FEW = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def naive(token_ids: list[int], most: int) -> tuple[int, ...]:
    """The definition."""
    end = len(token_ids)
    for length in range(min(LONGEST, end - 1), 0, -1):
        for place in range(end - 1, length - 1, -1):
            if token_ids[place - length : place] == token_ids[end - length :]:
                longer = list(token_ids)
                for number in range(most):
                    longer.append(longer[place + number])
                return tuple(longer[end:])
    return ()


@given(FEW, st.lists(FEW, max_size=4), st.integers(1, 6))
def test_it_is_what_followed_last_time(first: list[int], pieces: list[list[int]], most: int) -> None:
    token_ids = list(first)
    lookup = PromptLookup(token_ids)
    assert lookup.draft(most) == naive(token_ids, most)
    for piece in pieces:
        token_ids += piece
        assert lookup.draft(most) == naive(token_ids, most)


def test_a_loop_is_drafted_as_far_as_is_wanted() -> None:
    assert PromptLookup([9, 1, 2, 1, 2]).draft(5) == (1, 2, 1, 2, 1)
    assert PromptLookup([5, 5]).draft(3) == (5, 5, 5)


def test_longer_matches_count_more_than_later_ones() -> None:
    assert PromptLookup([1, 2, 3, 4, 9, 3, 8, 1, 2, 3]).draft(1) == (4,)


def test_the_same_token_is_another_one_in_another_place_of_an_n_gram() -> None:
    """Numbers of n-grams do not run into each other, whatever their tokens and lengths are."""
    most = (1 << 32) - 1
    assert PromptLookup([0, 7, 0, 0, 8, most, 0]).draft(1) == (8,)
    assert PromptLookup([1, 0, 5, 0, 1]).draft(1) == (0,)


def test_a_long_prompt_is_taken_up_piece_by_piece() -> None:
    token_ids = [*range(3 * TAKEN_AT_ONCE - 5), 0, 1]
    lookup = PromptLookup(token_ids)
    assert [lookup.draft(2) for _ in range(4)] == [(), (), (2, 3), (2, 3)]
