"""A step: which tokens of which sequences are computed together. Plain values."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step_costs import StepLoad


class Chunk(NamedTuple):
    """`num_tokens` tokens of a sequence's window, from position `start`, the last of which may be a draft.

    `completes`: the sequence has caught up after this chunk; `samples`: its next token is then drawn, and one
    after each token of the draft.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    completes: bool
    draft: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        return self.completes and self.sequence.draws

    @property
    def num_known(self) -> int:
        """Without the draft."""
        return self.num_tokens - len(self.draft)

    @property
    def token_ids(self) -> list[int]:
        known = self.sequence.context(self.start, self.num_known)
        return [*known, *self.draft] if self.draft else known

    @property
    def undrafted(self) -> "Chunk":
        return self._replace(num_tokens=self.num_known, draft=())


@dataclass(frozen=True)
class Step:
    """One pass through the model. Chunks of one token come first."""

    chunks: tuple[Chunk, ...]

    @cached_property
    def sampling(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.samples]

    @cached_property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def is_one(self) -> bool:
        """Whether it is of one sequence, without what that only drafted: no part of it could run alone."""
        return len(self.chunks) == 1 and not self.num_drafted

    @cached_property
    def num_drafted(self) -> int:
        return sum(len(chunk.draft) for chunk in self.chunks)

    @property
    def load(self) -> StepLoad:
        """A draft is computed as so many single tokens would be."""
        return StepLoad.of(part for chunk in self.chunks for part in _parts(chunk))


def _parts(chunk: Chunk) -> Seq[tuple[int, int]]:
    """The first position and the number of tokens of each."""
    if not chunk.draft:
        return ((chunk.start, chunk.num_tokens),)
    first = chunk.start + chunk.num_known
    drafted = [(position, 1) for position in range(first, first + len(chunk.draft))]
    return [(chunk.start, chunk.num_known), *drafted]


# What follows the first token that was drawn for a sequence, by its key.
Further = Mapping[int, Seq[int]]
NOTHING_FURTHER: Further = {}
