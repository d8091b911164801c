"""Frames: however a stream is cut, the same messages come out of it, and what is none is one clear error."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages.codec import MESSAGES
from coordinator.engine.messages.errors import MessageError
from coordinator.engine.messages.process import Beat, Hello
from coordinator.engine.process import frames
from coordinator.engine.process.frames import FrameReader, frame_of
from tests.coordinator.engine.messages.made_messages import values

MESSAGE = st.one_of(*map(values, MESSAGES))


def fed(reader: FrameReader, data: bytes) -> list[object]:
    return list(reader.feed(memoryview(data)))


@given(st.lists(MESSAGE, max_size=5), st.data())
def test_a_stream_may_be_cut_anywhere(messages: list[object], data: st.DataObject) -> None:
    stream = b"".join(map(frame_of, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, found = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += fed(reader, stream[start:end])
    assert found == messages


def test_byte_by_byte() -> None:
    reader = FrameReader()
    stream = frame_of(Hello("1")) + frame_of(Beat())
    assert [message for byte in stream for message in fed(reader, bytes([byte]))] == [Hello("1"), Beat()]


def test_a_frame_that_says_it_is_too_long_is_refused_at_once() -> None:
    with pytest.raises(MessageError, match=f"{2**32 - 1} bytes is longer than"):
        fed(FrameReader(), struct.pack("<I", 2**32 - 1))


def test_what_no_reader_would_take_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 40)
    assert fed(FrameReader(), frame_of(Hello("1"))) == [Hello("1")]
    with pytest.raises(MessageError, match="longer than 40"):
        frame_of(Hello("1" * 40))


@given(st.binary(min_size=4, max_size=40))
def test_bytes_that_are_no_message_are_one_clear_error(body: bytes) -> None:
    with suppress(MessageError):
        found = fed(FrameReader(), struct.pack("<I", len(body)) + body)
        assert type(found[0]) in MESSAGES
