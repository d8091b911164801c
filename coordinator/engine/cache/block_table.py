"""BlockTable: where one sequence's tokens are in one group of layers. Integers only."""

from array import array
from collections.abc import Iterable


class BlockTable:
    """Block ids by place: that of position p is `ids[p // block_size]`. Places before `first` hold 0: their
    blocks lie behind the window and have been given back. `num_reserved` is the pool's business.

    `ids` is an array of 32 bits, so that a step copies it without looking at each of a long context's blocks.
    """

    __slots__ = ("first", "ids", "num_reserved")

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.ids = array("i", ids)
        self.first = 0
        self.num_reserved = 0

    def __len__(self) -> int:
        """Places, those behind the window included."""
        return len(self.ids)

    @property
    def held(self) -> list[int]:
        """The blocks that the sequence has, in the order of their places."""
        return self.ids[self.first :].tolist()

    def begin(self, first: int, blocks: Iterable[int]) -> None:
        """What an empty table begins with: blocks from place `first` on."""
        assert not self.ids
        self.ids.extend([0] * first)
        self.ids.extend(blocks)
        self.first = first

    def cut(self, first: int, end: int) -> list[int]:
        """Gives up the blocks before place `first` and those from `end` on, and returns them."""
        given_up = self.ids[max(end, self.first) :].tolist()
        del self.ids[end:]
        for place in range(self.first, min(first, len(self.ids))):
            given_up.append(self.ids[place])
            self.ids[place] = 0
        self.first = max(self.first, min(first, len(self.ids)))
        return given_up

    def clear(self) -> list[int]:
        """Gives up all of them, the last one first."""
        given_up = self.held[::-1]
        self.ids, self.first, self.num_reserved = array("i"), 0, 0
        return given_up
