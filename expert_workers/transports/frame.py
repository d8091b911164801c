"""Messages as bytes: a fixed header, then rows, segments, row index and weights, little endian, no pickle.

Every length is checked against the header before anything is read. A frame is built as a list of buffers, so
that a socket can send arrays from where they are. Rows come first: they then begin 64 bytes after the frame
does, at the start of a cache line if the frame is at one. Shapes as in wire.py.
"""

import struct
from typing import Any, NamedTuple

import numpy as np

from expert_workers.wire import DTYPES, Array, ExpertCall, ExpertReply, Pong, ReplyForm, numpy_dtype
from moe_model.errors import ReplyError

VERSION = 3
CALL, REPLY, ERROR, PING, PONG = 1, 2, 3, 4, 5
# A header is not believed beyond this: far above any batch, far below what would exhaust memory.
MAX_BODY_BYTES = 1 << 30
MAX_ERROR_BYTES = 1024

# An array or bytes: what a socket can send.
Buffer = Any
# A frame in pieces, so that arrays need no copy, and the number of bytes in all of them.
Frame = tuple[list[Buffer], int]
_MAGIC = b"EM"
# magic, version, kind; dtype, form, has a row index; bytes after the header; call id, epoch; layer, segments,
# rows, pairs (of a reply: the weights' tag), width; seconds
HEADER = struct.Struct("<2sBBBBBxQQQIIIII4xd")
_DTYPE_NAMES = tuple(DTYPES)
_DTYPE_TAGS = {name: tag for tag, name in enumerate(DTYPES)}
_ELEMENTS = tuple(np.dtype(numpy_dtype(name)) for name in DTYPES)
# Most calls have few segments.
_SEGMENTS = tuple(struct.Struct(f"<{2 * n}I") for n in range(16))
_FORMS = tuple(ReplyForm)
_LONGEST = {CALL: MAX_BODY_BYTES, REPLY: MAX_BODY_BYTES, ERROR: MAX_ERROR_BYTES, PING: 0, PONG: 0}
_PADDING = tuple(bytes(n) for n in range(8))


class Header(NamedTuple):
    """A frame's first 64 bytes. `num_rows` are those that follow: of a call R, of a reply N. A reply's
    `num_pairs` is its weights' tag."""

    magic: bytes
    version: int
    kind: int
    dtype: int
    form: int
    has_index: int
    body_bytes: int
    call_id: int
    epoch: int
    layer: int
    num_segments: int
    num_rows: int
    num_pairs: int
    width: int
    seconds: float


def call_frame(call: ExpertCall) -> Frame:
    call_id, epoch, layer, segments, index_P, weights_P, x_RD, dtype, form = call
    num_segments, num_pairs = len(segments), 0
    flat: list[int] = []
    for slot, count in segments:
        flat += (slot, count)
        num_pairs += count
    num_rows, width = x_RD.shape
    body_bytes = x_RD.nbytes + 8 * num_segments
    padding = -body_bytes & 7
    buffers: list[Buffer] = [b"", x_RD, _PADDING[padding] + _segments(num_segments).pack(*flat)]
    body_bytes += padding
    if index_P is not None:
        buffers.append(index_P)
        body_bytes += 4 * num_pairs
    if weights_P is not None:
        buffers.append(weights_P)
        body_bytes += 4 * num_pairs
    buffers[0] = HEADER.pack(
        _MAGIC,
        VERSION,
        CALL,
        _DTYPE_TAGS[dtype],
        form,
        index_P is not None,
        body_bytes,
        call_id,
        epoch,
        layer,
        num_segments,
        num_rows,
        num_pairs,
        width,
        0.0,
    )
    return buffers, HEADER.size + body_bytes


def reply_frame(reply: ExpertReply) -> Frame:
    call_id, epoch, layer, tag, y_ND, seconds = reply
    num_rows, width = y_ND.shape
    body_bytes = 4 * num_rows * width
    tags = (_MAGIC, VERSION, REPLY, 0, 0, False, body_bytes, call_id, epoch)
    return [HEADER.pack(*tags, layer, 0, num_rows, tag, width, seconds), y_ND], HEADER.size + body_bytes


def error_frame(call_id: int, message: str) -> Frame:
    """What a worker says when it cannot answer: one line of text."""
    line = " ".join(message.split()).encode()[:MAX_ERROR_BYTES]
    sizes = (0, 0, 0, 0, 0)
    header = HEADER.pack(_MAGIC, VERSION, ERROR, 0, 0, False, len(line), call_id, 0, *sizes, 0.0)
    return [header, line], HEADER.size + len(line)


def ping_frame(call_id: int, epoch: int) -> Frame:
    """Asks the other end to say that it is there: a header, and nothing after it."""
    return _bare_frame(PING, call_id, epoch)


def pong_frame(header: Header) -> Frame:
    """The answer to a ping."""
    return _bare_frame(PONG, header.call_id, header.epoch)


def _bare_frame(kind: int, call_id: int, epoch: int) -> Frame:
    sizes = (0, 0, 0, 0, 0)
    return [HEADER.pack(_MAGIC, VERSION, kind, 0, 0, False, 0, call_id, epoch, *sizes, 0.0)], HEADER.size


def encode(frame: Frame) -> bytes:
    """A frame in one piece."""
    return b"".join(frame[0])


def read_header(frame: Buffer, offset: int = 0) -> Header:
    """The header at an offset, checked as far as its own fields go. Raises ReplyError."""
    try:
        header = Header._make(HEADER.unpack_from(frame, offset))
    except (struct.error, TypeError):
        raise ReplyError("frame: shorter than its header") from None
    magic, version, kind, dtype, form, has_index, body_bytes, *_ = header
    if magic != _MAGIC or version != VERSION:
        raise ReplyError(f"frame: not version {VERSION} of the data plane")
    if not CALL <= kind <= PONG or dtype >= len(_DTYPE_NAMES) or form >= len(_FORMS) or has_index > 1:
        raise ReplyError(f"frame: bad kind {kind}, dtype {dtype}, form {form} or index flag {has_index}")
    if body_bytes > _LONGEST[kind]:
        raise ReplyError(f"frame: a body of {body_bytes} bytes is longer than any may be")
    return header


def parse_call(header: Header, body: Buffer) -> ExpertCall:
    """The call of a header and its body; its arrays are views of the body. Raises ReplyError."""
    _, _, kind, dtype, form, has_index, body_bytes, call_id, epoch, layer, *sizes, _ = header
    num_segments, num_rows, num_pairs, width = sizes
    element, is_sum = _ELEMENTS[dtype], form == ReplyForm.SUM
    rows_bytes, segments_bytes = num_rows * width * element.itemsize, 8 * num_segments
    segments_at = rows_bytes + (-(rows_bytes + segments_bytes) & 7)
    index_at = segments_at + segments_bytes
    weights_at = index_at + 4 * num_pairs * has_index
    if kind != CALL or not len(body) == body_bytes == weights_at + 4 * num_pairs * is_sum:
        _check_kind(kind, CALL)
        _check_length(header, body, weights_at + 4 * num_pairs * is_sum)
    flat = _segments(num_segments).unpack_from(body, segments_at)
    if sum(flat[1::2]) != num_pairs:
        raise ReplyError(f"frame: segments do not add up to {num_pairs} pairs")
    return ExpertCall(
        call_id,
        epoch,
        layer,
        tuple(zip(flat[::2], flat[1::2], strict=True)),
        np.ndarray(num_pairs, np.int32, body, index_at) if has_index else None,
        np.ndarray(num_pairs, np.float32, body, weights_at) if is_sum else None,
        np.ndarray((num_rows, width), element, body),
        _DTYPE_NAMES[dtype],
        _FORMS[form],
    )


def parse_reply(header: Header, body: Buffer) -> ExpertReply:
    """The reply of a header and its body; its array is a view of the body. Raises ReplyError."""
    _check_kind(header.kind, REPLY)
    _check_length(header, body, reply_bytes(header))
    y_ND = np.frombuffer(body, np.float32, header.num_rows * header.width)
    return reply_of(header, y_ND.reshape(header.num_rows, header.width))


def reply_of(header: Header, y_ND: Array) -> ExpertReply:
    """The reply of a header whose rows are elsewhere."""
    _, _, _, _, _, _, _, call_id, epoch, layer, _, _, tag, _, seconds = header
    return ExpertReply(call_id, epoch, layer, tag, y_ND, seconds)


def pong_of(header: Header) -> Pong:
    return Pong(header.call_id, header.epoch)


def reply_bytes(header: Header) -> int:
    """The bytes of the rows that a reply's header announces."""
    return 4 * header.num_rows * header.width


def decode_call(frame: bytes) -> ExpertCall:
    """The call in a whole frame; its arrays are read-only views of it. Raises ReplyError."""
    header = read_header(frame)
    return parse_call(header, memoryview(frame)[HEADER.size :])


def decode_reply(frame: bytes) -> ExpertReply:
    """The reply in a whole frame; its array is a read-only view of it. Raises ReplyError."""
    header = read_header(frame)
    return parse_reply(header, memoryview(frame)[HEADER.size :])


def _segments(num_segments: int) -> struct.Struct:
    return _SEGMENTS[num_segments] if num_segments < 16 else struct.Struct(f"<{2 * num_segments}I")


def _check_kind(kind: int, expected: int) -> None:
    if kind != expected:
        raise ReplyError(f"frame: bad kind {kind}, expected {expected}")


def _check_length(header: Header, body: Buffer, expected: int) -> None:
    if len(body) != header.body_bytes or header.body_bytes != expected:
        sizes = f"{len(body)} bytes where its header says {header.body_bytes} and its sizes {expected}"
        raise ReplyError(f"frame: body has {sizes}")
