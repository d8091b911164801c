import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.frame import decode_call, decode_reply, encode_call, encode_reply
from expert_workers.wire import ExpertCall, ExpertReply, numpy_dtype
from moe_model.errors import ReplyError

CALL = ExpertCall(
    9, 1, 2, ((0, 1), (3, 2)), np.array([0, 0, 1], np.int32), np.eye(2, 3, dtype=np.float32), "float32"
)
FRAME = encode_call(CALL)


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 4)), min_size=1, max_size=5),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_a_call_comes_back_as_it_was(
    call_id: int, segments: list[tuple[int, int]], width: int, has_index: bool, dtype: str
) -> None:
    pairs = sum(count for _, count in segments)
    rows = torch.arange(pairs * width).numpy().astype(numpy_dtype(dtype)).reshape(pairs, width)
    index = np.arange(pairs, dtype=np.int32) if has_index else None
    call = ExpertCall(call_id, 5, 3, tuple(segments), index, rows, dtype)
    back = decode_call(encode_call(call))
    assert (back.call_id, back.epoch, back.layer) == (call_id, 5, 3)
    assert (back.segments, back.dtype) == (call.segments, dtype)
    assert np.array_equal(back.x_RD, rows)
    assert back.x_RD.dtype == rows.dtype
    assert (back.row_index_P is None) == (index is None)
    if index is not None and back.row_index_P is not None:
        assert np.array_equal(back.row_index_P, index)


def test_a_reply_comes_back_as_it_was() -> None:
    y = np.arange(6, dtype=np.uint16).reshape(2, 3)
    back = decode_reply(encode_reply(ExpertReply(4, 1, y, "bfloat16", 0.25)))
    assert (back.call_id, back.epoch, back.dtype, back.compute_seconds) == (4, 1, "bfloat16", 0.25)
    assert np.array_equal(back.y_PD, y)


@pytest.mark.parametrize("end", range(0, len(FRAME), 7))
def test_a_cut_frame_is_refused(end: int) -> None:
    with pytest.raises(ReplyError, match="frame"):
        decode_call(FRAME[:end])


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"XX"),
        (2, b"\x02"),
        (3, b"\x02"),
        (4, b"\x09"),
        (5, b"\x02"),
        (26, struct.pack("<I", 2**31)),
        (30, struct.pack("<I", 2**31)),
        (34, struct.pack("<I", 2**31)),
    ],
    ids=["magic", "version", "kind", "dtype", "index flag", "segments", "rows", "pairs"],
)
def test_a_frame_with_a_wrong_header_is_refused(offset: int, value: bytes) -> None:
    with pytest.raises(ReplyError, match="frame"):
        decode_call(FRAME[:offset] + value + FRAME[offset + len(value) :])


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_reply(data)


@given(st.binary(min_size=53, max_size=53))
def test_a_random_header_is_refused_without_believing_it(data: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_call(b"EM\x01\x01" + data)


def test_a_reply_is_no_call() -> None:
    with pytest.raises(ReplyError, match="bad kind"):
        decode_call(encode_reply(ExpertReply(4, 1, np.ones((1, 1), np.float32), "float32", 0.0)))


def test_segments_must_add_up() -> None:
    position = FRAME.index(struct.pack("<II", 3, 2))
    frame = FRAME[:position] + struct.pack("<II", 3, 1) + FRAME[position + 8 :]
    with pytest.raises(ReplyError, match="do not add up"):
        decode_call(frame)
