"""Messages as bytes: a fixed header, then segments, row index and rows, little endian, no pickle.

Every length is checked against the header before anything is read. Shapes as in wire.py.
"""

import struct

import numpy as np

from expert_workers.wire import DTYPES, Array, ExpertCall, ExpertReply, numpy_dtype
from moe_model.errors import ReplyError

_MAGIC = b"EM"
_VERSION = 1
_CALL, _REPLY = 1, 2
# magic, version, kind, dtype, has a row index; call id, epoch; layer, segments, rows, pairs, width; seconds
_HEADER = struct.Struct("<2sBBBBQQIIIIId")
_DTYPE_NAMES = tuple(DTYPES)
# A header is not believed beyond this: far above any batch, far below what would exhaust memory.
MAX_FRAME_BYTES = 1 << 31


def encode_call(call: ExpertCall) -> bytes:
    num_rows, width = call.x_RD.shape
    has_index = call.row_index_P is not None
    sizes = (call.layer, len(call.segments), num_rows, call.num_pairs, width, 0.0)
    tags = (_MAGIC, _VERSION, _CALL, _DTYPE_NAMES.index(call.dtype), has_index)
    header = _HEADER.pack(*tags, call.call_id, call.epoch, *sizes)
    index = b"" if call.row_index_P is None else call.row_index_P.astype("<i4", copy=False).data
    # Arrays are joined as they are: the frame is the only copy.
    return b"".join((header, np.array(call.segments, "<u4").data, index, call.x_RD.data))


def encode_reply(reply: ExpertReply) -> bytes:
    num_pairs, width = reply.y_PD.shape
    tags = (_MAGIC, _VERSION, _REPLY, _DTYPE_NAMES.index(reply.dtype), False)
    sizes = (0, 0, 0, num_pairs, width, reply.compute_seconds)
    return b"".join((_HEADER.pack(*tags, reply.call_id, reply.epoch, *sizes), reply.y_PD.data))


def decode_call(frame: bytes) -> ExpertCall:
    """The call in a frame; its arrays are read-only views of it. Raises ReplyError."""
    dtype, has_index, call_id, epoch, layer, num_segments, num_rows, num_pairs, width, _ = _header(
        frame, _CALL
    )
    index_bytes = 4 * num_pairs * has_index
    rows_bytes = num_rows * width * np.dtype(numpy_dtype(dtype)).itemsize
    _check_length(frame, 8 * num_segments + index_bytes + rows_bytes)
    offset = _HEADER.size
    segments_S2 = np.frombuffer(frame, "<u4", 2 * num_segments, offset).reshape(num_segments, 2)
    segments = tuple((int(expert), int(count)) for expert, count in segments_S2)
    if sum(count for _, count in segments) != num_pairs:
        raise ReplyError(f"frame: segments do not add up to {num_pairs} pairs")
    offset += 8 * num_segments
    index_P = np.frombuffer(frame, "<i4", num_pairs, offset) if has_index else None
    x_RD = _rows(frame, dtype, num_rows, width, offset + index_bytes)
    return ExpertCall(call_id, epoch, layer, segments, index_P, x_RD, dtype)


def decode_reply(frame: bytes) -> ExpertReply:
    """The reply in a frame; its array is a read-only view of it. Raises ReplyError."""
    dtype, _, call_id, epoch, _, _, _, num_pairs, width, seconds = _header(frame, _REPLY)
    _check_length(frame, num_pairs * width * np.dtype(numpy_dtype(dtype)).itemsize)
    return ExpertReply(call_id, epoch, _rows(frame, dtype, num_pairs, width, _HEADER.size), dtype, seconds)


def _header(frame: bytes, kind: int) -> tuple[str, bool, int, int, int, int, int, int, int, float]:
    if not isinstance(frame, bytes) or len(frame) < _HEADER.size:
        raise ReplyError("frame: shorter than its header")
    magic, version, got_kind, dtype, has_index, *rest = _HEADER.unpack_from(frame)
    if magic != _MAGIC or version != _VERSION:
        raise ReplyError(f"frame: not version {_VERSION} of the data plane")
    if got_kind != kind or dtype >= len(_DTYPE_NAMES) or has_index > 1:
        raise ReplyError(f"frame: bad kind {got_kind}, dtype {dtype} or index flag {has_index}")
    call_id, epoch, layer, num_segments, num_rows, num_pairs, width, seconds = rest
    sizes = (call_id, epoch, layer, num_segments, num_rows, num_pairs, width)
    return _DTYPE_NAMES[dtype], bool(has_index), *sizes, seconds


def _check_length(frame: bytes, body: int) -> None:
    if body > MAX_FRAME_BYTES or len(frame) != _HEADER.size + body:
        got = len(frame) - _HEADER.size
        raise ReplyError(f"frame: body has {got} bytes where its header says {body}, limit {MAX_FRAME_BYTES}")


def _rows(frame: bytes, dtype: str, num_rows: int, width: int, offset: int) -> Array:
    rows = np.frombuffer(frame, numpy_dtype(dtype), num_rows * width, offset)
    return rows.reshape(num_rows, width)
