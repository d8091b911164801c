"""The bytes of a routing trace: a header, then blocks, each whole by itself. All numbers little-endian.

    magic, u32 length, header as JSON
    block: b"BLCK", u32 bytes that follow the head, u32 bytes unpacked, u32 CRC-32 of what follows, that in
    zlib unpacked: u32 number of entries, u16 layers, u8 K, u8 bytes of an id, the entries, then ids_TLK of
    all their rows, in their order

Expert ids are logical ones; all bits set: absent, of a token that went to fewer than K experts. Shapes: T
rows of a block, L MoE layers, K experts per token.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"expertmesh routing trace 1\n"
BLOCK_MAGIC = b"BLCK"
LENGTH = struct.Struct("<I")
BLOCK_HEAD = struct.Struct("<4sIII")
INSIDE = struct.Struct("<IHBB")
# What a reader must be ready to hold; a writer's blocks are far smaller.
MAX_HEADER, MAX_BLOCK = 1 << 20, 1 << 26
ABSENT = np.iinfo(np.uint16).max
# A sequence begins (`first`: number of its request, `count`: tokens of its prompt), has `count` rows from
# position `first` on, or is over (`first`: its tokens, drawn ones too).
BEGIN, ROWS, END = range(3)
ENTRY = np.dtype(
    [
        *(("kind", "u1"), ("reserved", "u1"), ("index", "<u2"), ("sequence", "<u4")),
        *(("first", "<u4"), ("count", "<u4"), ("version", "<u4")),
    ]
)


class Block(NamedTuple):
    """`ids_TLK` is uint16, ABSENT where there is none."""

    entries: np.ndarray
    ids_TLK: np.ndarray


def pack_header(header: Mapping[str, Any]) -> bytes:
    data = json.dumps(header).encode()
    return MAGIC + LENGTH.pack(len(data)) + data


def pack_block(block: Block) -> bytes:
    num_layers, top_k = block.ids_TLK.shape[1:]
    ids_TLK = block.ids_TLK
    known = ids_TLK[ids_TLK != ABSENT]
    is_small = not known.size or int(known.max()) < 0xFF
    # The low byte of ABSENT is the absent one of a byte.
    packed = ids_TLK.astype(np.uint8) if is_small else ids_TLK.astype("<u2")
    inside = INSIDE.pack(len(block.entries), num_layers, top_k, packed.itemsize)
    raw = inside + block.entries.tobytes() + packed.tobytes()
    data = zlib.compress(raw, 1)
    return BLOCK_HEAD.pack(BLOCK_MAGIC, len(data), len(raw), zlib.crc32(data)) + data


def unpack_block(data: bytes, num_unpacked: int) -> Block:
    """Of the bytes after a block's head, whose sum was found to be right. Raises ValueError for what is no
    block of `num_unpacked` bytes."""
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(data, num_unpacked)
    except zlib.error as error:
        raise ValueError("a block that cannot be unpacked") from error
    if len(raw) != num_unpacked or inflate.unconsumed_tail or len(raw) < INSIDE.size:
        raise ValueError("a block of another length than it says")
    num_entries, num_layers, top_k, id_bytes = INSIDE.unpack_from(raw)
    ids_at = INSIDE.size + num_entries * ENTRY.itemsize
    if id_bytes not in (1, 2) or ids_at > len(raw):
        raise ValueError("a block with another number of entries than it says")
    entries = np.frombuffer(raw, ENTRY, num_entries, INSIDE.size)
    num_rows = int(entries["count"][entries["kind"] == ROWS].sum(dtype=np.int64))
    if len(raw) - ids_at != num_rows * num_layers * top_k * id_bytes or (entries["kind"] > END).any():
        raise ValueError("a block with other rows than it says")
    ids = np.frombuffer(raw, np.uint8 if id_bytes == 1 else "<u2", offset=ids_at).astype(np.uint16)
    if id_bytes == 1:
        ids[ids == 0xFF] = ABSENT
    return Block(entries, ids.reshape(num_rows, num_layers, top_k))
