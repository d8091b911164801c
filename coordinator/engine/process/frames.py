"""Frames: messages on a byte stream, each with the number of its bytes before it."""

import struct
from collections.abc import Iterator

from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.errors import MessageError

_LENGTH = struct.Struct("<I")
# Longer than any message that is no mistake: a prompt has some MiB, the routing of a step some ten.
MAX_FRAME_BYTES = 128 << 20


def frame_of(message: object) -> bytes:
    """Raises MessageError for a message that no reader would take."""
    body = encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise MessageError(f"a message of {len(body)} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts what comes of a stream into messages."""

    def __init__(self) -> None:
        # The beginning of a frame, and how long it will be, as far as that is known.
        self._begun = bytearray()
        self._needed = 0

    def feed(self, data: memoryview) -> Iterator[object]:
        """The messages that are complete with `data`. Raises MessageError for what is none of ours."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._needed:
                return
            data = memoryview(bytes(self._begun))
            self._begun.clear()
        start = 0
        while len(data) - start >= (length := _frame_length(data[start:])):
            yield decode(data[start + _LENGTH.size : start + length])
            start += length
        self._begun += data[start:]
        self._needed = length


def _frame_length(data: memoryview) -> int:
    """Of the frame that begins there; as much as tells it, where that is not there yet."""
    if len(data) < _LENGTH.size:
        return _LENGTH.size
    (length,) = _LENGTH.unpack_from(data)
    if length > MAX_FRAME_BYTES:
        raise MessageError(f"a message of {length} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.size + int(length)
