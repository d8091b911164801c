"""TextStream: the deltas are the text, nothing is taken back, and no character is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.text.text_stream import TextStream
from coordinator.engine.sampling.stop_text import TextMatcher

TEXT = st.text(st.sampled_from("ab🙂é\n"), max_size=14)
CUTS = st.lists(st.integers(1, 4), min_size=1, max_size=20)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces, turn = [], 0
    while data:
        size = cuts[turn % len(cuts)]
        pieces.append(data[:size])
        data, turn = data[size:], turn + 1
    return pieces


def streamed(pieces: list[bytes], stops: list[bytes], *, include_stop: bool = False) -> tuple[list[str], str]:
    """What a generation that ends at the first stop sends, and what it should have sent."""
    stream = TextStream(lambda token: pieces[token], stops, include_stop=include_stop)
    matcher = TextMatcher(stops, lambda token: pieces[token]) if stops else None
    sent: list[str] = []
    whole = b""
    for token in range(len(pieces)):
        whole += pieces[token]
        match = None if matcher is None else matcher.push(token)
        if match is not None:
            end = len(whole) - match.num_after - (0 if include_stop else len(match.text))
            sent.append(stream.finish([token], match))
            return sent, whole[:end].decode(errors="replace")
        sent.append(stream.push([token]))
    sent.append(stream.finish([]))
    return sent, whole.decode(errors="replace")


@given(TEXT, CUTS, st.lists(TEXT.filter(bool).map(str.encode), max_size=3), st.booleans())
def test_any_text_any_tokens_any_stops(
    text: str, cuts: list[int], stops: list[bytes], include_stop: bool
) -> None:
    sent, expected = streamed(pieces_of(text.encode(), cuts), stops, include_stop=include_stop)
    assert "".join(sent) == expected
    assert all("\ufffd" not in part for part in sent[:-1]), "a split character"


def test_what_may_become_a_stop_is_held_back_and_no_more() -> None:
    pieces = [b"ab", b"cX", b"ab", b"cd"]
    stream = TextStream(lambda token: pieces[token], [b"abcd"])
    assert [stream.push([token]) for token in range(3)] == ["", "abcX", ""]


def test_a_stop_that_stays_is_waited_for_by_nobody() -> None:
    stream = TextStream(lambda token: b"ab", [b"abcd"], include_stop=True)
    assert stream.push([0]) == "ab"


@pytest.mark.parametrize("include_stop", [False, True])
def test_how_outputs_are_merged_changes_nothing(include_stop: bool) -> None:
    pieces = ["🙂"[:1].encode()[:2], "🙂".encode()[2:], b"a", b"END!"]
    one, _ = streamed(pieces, [b"aEN"], include_stop=include_stop)
    stream = TextStream(lambda token: pieces[token], [b"aEN"], include_stop=include_stop)
    matcher = TextMatcher((b"aEN",), lambda token: pieces[token])
    match = [matcher.push(token) for token in range(4)][-1]
    assert stream.finish([0, 1, 2, 3], match) == "".join(one)
