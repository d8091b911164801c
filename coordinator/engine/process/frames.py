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
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        """The messages that are complete with `data`. Raises MessageError for what is none of ours."""
        unread = self._unread
        unread += data
        start = 0
        try:
            while len(unread) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(unread, start)
                if length > MAX_FRAME_BYTES:
                    raise MessageError(f"a message of {length} bytes is longer than {MAX_FRAME_BYTES}")
                end = start + _LENGTH.size + length
                if len(unread) < end:
                    return
                body = bytes(unread[start + _LENGTH.size : end])
                start = end
                yield decode(body)
        finally:
            del unread[:start]
