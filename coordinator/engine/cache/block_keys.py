"""Names of KV blocks by content: a block's key stands for its tokens and for everything before them.

SHA-256, not hash(): a caller that could make two prompts collide would read another caller's context.
"""

import hashlib
from array import array
from collections.abc import Sequence

from coordinator.engine.messages.request import Request


def root_key(request: Request, version: int) -> bytes:
    """What a chain of keys starts from: requests that may not share start differently."""
    parts = (request.experts, request.cache_salt, version)
    return hashlib.sha256(repr(parts).encode()).digest()


def next_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block that follows the block of `parent`."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()


class BlockKeys:
    """The keys of one sequence's full blocks, made as they are asked for."""

    def __init__(self, request: Request, block_size: int, version: int = 0) -> None:
        """`version` is the number of the model's version: no other one has the same keys and values."""
        self._block_size = block_size
        self._root = root_key(request, version)
        self._keys: list[bytes] = []

    def between(self, token_ids: Sequence[int], start: int, end: int) -> list[bytes]:
        """Keys of the blocks [start, end) of the tokens, all of which must be full."""
        while len(self._keys) < end:
            first = len(self._keys) * self._block_size
            parent = self._keys[-1] if self._keys else self._root
            self._keys.append(next_key(parent, token_ids[first : first + self._block_size]))
        return self._keys[start:end]
