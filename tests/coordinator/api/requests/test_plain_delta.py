"""The bytes of a plain delta are those that protobuf writes."""

from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.api.requests.plain_delta import plain_bytes, plain_event

UINT32 = st.integers(0, (1 << 32) - 1)
EDGES = [0, 1, 127, 128, (1 << 14) - 1, 1 << 14, (1 << 21) - 1, 1 << 21, 1 << 28, (1 << 32) - 1]


@given(
    UINT32 | st.sampled_from(EDGES),
    st.text(max_size=300),
    UINT32 | st.sampled_from(EDGES),
    st.lists(UINT32 | st.sampled_from(EDGES), max_size=40),
)
@example(0, "", 0, [])
@example(7, "\0", 128, EDGES)
def test_the_bytes_are_protobufs(index: int, text: str, num_tokens: int, token_ids: list[int]) -> None:
    expected = plain_event(index, text, num_tokens, token_ids)
    data = plain_bytes(index, text, num_tokens, token_ids)
    assert data == expected.SerializeToString(deterministic=True)
    assert type(expected).FromString(data) == expected
