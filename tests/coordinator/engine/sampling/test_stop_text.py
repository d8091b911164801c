"""Stop text: found wherever the tokens' boundaries are, and the earliest end wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages.output import TextMatch
from coordinator.engine.sampling.stop_text import TextMatcher


def matches(pieces: list[bytes], *sequences: bytes) -> tuple[int, TextMatch] | None:
    """The number of the piece that completes a match, and the match."""
    matcher = TextMatcher(sequences, lambda token: pieces[token])
    for number in range(len(pieces)):
        match = matcher.push(number)
        if match is not None:
            return number, match
    return None


@pytest.mark.parametrize(
    ("pieces", "sequences", "expected"),
    [
        ([b"ab", b"cd"], [b"bc"], (1, TextMatch(b"bc", 1))),
        ([b"a", b"b", b"c"], [b"abc"], (2, TextMatch(b"abc", 0))),
        ([b"a", b"", b"b"], [b"ab"], (2, TextMatch(b"ab", 0))),
        ([b"xx"], [b"x"], (0, TextMatch(b"x", 1))),
        ([b"abcd"], [b"cd", b"b"], (0, TextMatch(b"b", 2))),
        ([b"abc"], [b"c", b"bc"], (0, TextMatch(b"bc", 0))),
        (["é".encode()[:1], "é".encode()[1:]], ["é".encode()], (1, TextMatch("é".encode(), 0))),
        ([b"ab", b"ab"], [b"ba"], (1, TextMatch(b"ba", 1))),
        ([b"ab"], [b"abc"], None),
        ([b""], [b"a"], None),
    ],
)
def test_cases(pieces: list[bytes], sequences: list[bytes], expected: object) -> None:
    assert matches(pieces, *sequences) == expected


WORDS = st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"", b"aab"]), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=3)


@given(WORDS, STOPS)
def test_any_tokens_and_any_sequences(pieces: list[bytes], sequences: list[bytes]) -> None:
    text = b"".join(pieces)
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(tuple(sequences))]
    found = matches(pieces, *sequences)
    if not ends:
        assert found is None
        return
    assert found is not None
    number, match = found
    written = len(b"".join(pieces[: number + 1]))
    assert written - match.num_after == ends[0], "the earliest end"
    assert len(b"".join(pieces[:number])) < ends[0], "in the token that wrote it"
    assert match.text == max((s for s in sequences if text[: ends[0]].endswith(s)), key=len)
