"""Where a cache has what a token keeps: the one place that knows, for all that write and read caches.

A cache is blocks of slots, slot = block · block_size + offset; kernels name the layout that they want.
Shapes: B blocks, S slots of a block, G heads of a part, d width of a head, N slots.
"""

from typing import Literal, Protocol

from torch import Tensor

from moe_model.layers.specs import CachePart

CacheLayoutName = Literal["token_major", "head_major"]


class CacheLayout(Protocol):
    """The order of one layer's part in memory."""

    @property
    def name(self) -> CacheLayoutName: ...

    def shape(self, num_blocks: int, block_size: int, part: CachePart) -> tuple[int, int, int, int]:
        """The blocks come first."""

    def write(self, stored: Tensor, slots_N: Tensor, rows_NGd: Tensor) -> None:
        """Rounds to the dtype of what is stored. The slots differ from each other."""

    def read(self, stored: Tensor, slots_N: Tensor) -> Tensor:
        """Returns rows_NGd."""


class TokenMajor:
    """[B, S, G, d]: all that a token keeps is in one piece."""

    name: CacheLayoutName = "token_major"

    def shape(self, num_blocks: int, block_size: int, part: CachePart) -> tuple[int, int, int, int]:
        return num_blocks, block_size, part.num_heads, part.width

    def write(self, stored: Tensor, slots_N: Tensor, rows_NGd: Tensor) -> None:
        stored.flatten(0, 1).index_copy_(0, slots_N, rows_NGd.to(stored.dtype))

    def read(self, stored: Tensor, slots_N: Tensor) -> Tensor:
        # By flat slots: the same numbers as indexing by both, several times as fast.
        return stored.flatten(0, 1).index_select(0, slots_N)


class HeadMajor:
    """[B, G, S, d]: a head of a block is in one piece, which is what the C kernels read."""

    name: CacheLayoutName = "head_major"

    def shape(self, num_blocks: int, block_size: int, part: CachePart) -> tuple[int, int, int, int]:
        return num_blocks, part.num_heads, block_size, part.width

    def write(self, stored: Tensor, slots_N: Tensor, rows_NGd: Tensor) -> None:
        block_size = stored.shape[2]
        stored[slots_N // block_size, :, slots_N % block_size] = rows_NGd.to(stored.dtype)

    def read(self, stored: Tensor, slots_N: Tensor) -> Tensor:
        block_size = stored.shape[2]
        return stored[slots_N // block_size, :, slots_N % block_size]


_LAYOUTS: dict[CacheLayoutName, CacheLayout] = {each.name: each for each in (TokenMajor(), HeadMajor())}


def cache_layout(name: CacheLayoutName) -> CacheLayout:
    """Of this name."""
    return _LAYOUTS[name]
