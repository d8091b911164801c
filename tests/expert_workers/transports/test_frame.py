import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.transports.frame import (
    HEADER,
    MAX_BODY_BYTES,
    MAX_ERROR_BYTES,
    PING,
    PONG,
    call_frame,
    decode_call,
    decode_reply,
    encode,
    error_frame,
    ping_frame,
    pong_frame,
    pong_of,
    read_header,
    reply_frame,
)
from expert_workers.wire import ExpertCall, ExpertReply, Pong, ReplyForm, numpy_dtype
from moe_model.errors import ReplyError

CALL = ExpertCall(
    9,
    1,
    2,
    ((0, 1), (3, 2)),
    np.array([0, 0, 1], np.int32),
    np.array([0.5, 0.25, 1.0], np.float32),
    np.eye(2, 3, dtype=np.float32),
    "float32",
    ReplyForm.SUM,
)
FRAME = encode(call_frame(CALL))
REPLY = ExpertReply(4, 1, 2, 77, np.ones((1, 1), np.float32), 0.0)


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 4)), min_size=1, max_size=20),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(ReplyForm),
)
def test_a_call_comes_back_as_it_was(
    call_id: int,
    segments: list[tuple[int, int]],
    width: int,
    has_index: bool,
    dtype: str,
    form: ReplyForm,
) -> None:
    pairs = sum(count for _, count in segments)
    rows = torch.arange(pairs * width).numpy().astype(numpy_dtype(dtype)).reshape(pairs, width)
    index = np.arange(pairs, dtype=np.int32) if has_index else None
    weights = np.linspace(0, 1, pairs, dtype=np.float32) if form is ReplyForm.SUM else None
    call = ExpertCall(call_id, 5, 3, tuple(segments), index, weights, rows, dtype, form)
    pieces, num_bytes = call_frame(call)
    frame = encode((pieces, num_bytes))
    assert len(frame) == num_bytes == HEADER.size + read_header(frame).body_bytes
    back = decode_call(frame)
    assert back[:4] == call[:4]
    assert (back.dtype, back.form) == (dtype, form)
    for name in ("row_index_P", "weights_P", "x_RD"):
        expected, got = getattr(call, name), getattr(back, name)
        assert (expected is None) == (got is None)
        if expected is not None:
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected)


def test_arrays_are_sent_from_where_they_are_and_rows_begin_at_a_cache_line() -> None:
    pieces, _ = call_frame(CALL)
    assert any(piece is CALL.x_RD for piece in pieces)
    assert FRAME[64:88] == CALL.x_RD.tobytes()


def test_a_reply_comes_back_as_it_was() -> None:
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = decode_reply(encode(reply_frame(ExpertReply(4, 1, 2, 77, y, 0.25))))
    assert (back.call_id, back.epoch, back.layer, back.tag, back.compute_seconds) == (4, 1, 2, 77, 0.25)
    assert np.array_equal(back.y_ND, y)


def test_pings_and_their_answers_are_headers() -> None:
    ping = read_header(encode(ping_frame(2**64 - 1, 7)))
    pong = encode(pong_frame(ping))
    assert (ping.kind, read_header(pong).kind, len(pong)) == (PING, PONG, HEADER.size)
    assert pong_of(read_header(pong)) == Pong(2**64 - 1, 7)
    with pytest.raises(ReplyError, match="a body of 8 bytes"):
        read_header(pong[:8] + struct.pack("<Q", 8) + pong[16:])
    with pytest.raises(ReplyError, match="bad kind 4"):
        decode_call(encode(ping_frame(1, 1)))


def test_an_error_is_one_bounded_line() -> None:
    frame = encode(error_frame(7, "first\nsecond " + "x" * 5000))
    header = read_header(frame)
    assert (header.call_id, header.body_bytes) == (7, MAX_ERROR_BYTES)
    assert frame[HEADER.size :].startswith(b"first second xxx")


@pytest.mark.parametrize("end", range(0, len(FRAME), 7))
def test_a_cut_frame_is_refused(end: int) -> None:
    with pytest.raises(ReplyError, match="frame"):
        decode_call(FRAME[:end])


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"XX"),
        (2, b"\x01"),
        (3, b"\x02"),
        (3, b"\x04"),
        (3, b"\x06"),
        (4, b"\x09"),
        (5, b"\x02"),
        (6, b"\x02"),
        (8, struct.pack("<Q", MAX_BODY_BYTES + 1)),
        (8, struct.pack("<Q", 2**64 - 1)),
        (8, struct.pack("<Q", 1)),
        (36, struct.pack("<I", 2**32 - 1)),
        (40, struct.pack("<I", 2**32 - 1)),
        (44, struct.pack("<I", 2**32 - 1)),
        (48, struct.pack("<I", 2**32 - 1)),
    ],
    ids=[
        "magic",
        "version",
        "a reply",
        "a ping with a body",
        "kind",
        "dtype",
        "form",
        "index flag",
        "too long",
        "far too long",
        "too short",
        "segments",
        "rows",
        "pairs",
        "width",
    ],
)
def test_a_frame_with_a_wrong_header_is_refused(offset: int, value: bytes) -> None:
    with pytest.raises(ReplyError, match="frame"):
        decode_call(FRAME[:offset] + value + FRAME[offset + len(value) :])


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_reply(data)


@given(st.binary(min_size=61, max_size=61))
def test_a_random_header_is_refused_without_believing_it(data: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_call(b"EM\x03\x01" + data)


def test_a_reply_is_no_call() -> None:
    with pytest.raises(ReplyError, match="bad kind"):
        decode_call(encode(reply_frame(REPLY)))
    with pytest.raises(ReplyError, match="bad kind"):
        decode_reply(FRAME)


def test_an_old_frame_names_the_version() -> None:
    with pytest.raises(ReplyError, match="not version 3 of the data plane"):
        read_header(b"EM\x01" + FRAME[3:])


def test_segments_must_add_up() -> None:
    position = FRAME.index(struct.pack("<II", 3, 2))
    frame = FRAME[:position] + struct.pack("<II", 3, 1) + FRAME[position + 8 :]
    with pytest.raises(ReplyError, match="do not add up"):
        decode_call(frame)
