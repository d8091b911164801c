"""Which tokens of which sequences the next step computes. Policy only: no tensors, no threads.

    waiting --admit--> running --finish, abort--> gone
       ^                  |
       +-----preempt------+

`schedule` only reserves; `update` is the one place where progress moves. So a step that failed half-way
has consumed nothing and can be run again.
"""

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from coordinator.engine.cache.block_pools import BlockPools
from coordinator.engine.cache.cache_sizes import CacheSizes
from coordinator.engine.cache.prefix_cache import PrefixCache
from coordinator.engine.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`num_tokens` tokens of a sequence's window, from position `start`.

    `completes`: the sequence has caught up after this chunk; `samples`: its next token is then drawn.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    completes: bool

    @property
    def samples(self) -> bool:
        return self.completes and self.sequence.draws


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model. Chunks of one token come first."""

    chunks: tuple[Chunk, ...]

    @property
    def sampling(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.samples]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Continuous batching under a token budget over a paged cache."""

    def __init__(
        self,
        sizes: CacheSizes,
        max_num_seqs: int,
        max_step_tokens: int,
        *,
        prefix_caching: bool = True,
    ) -> None:
        self.pools = BlockPools(sizes, max_step_tokens)
        self.prefix_cache = PrefixCache(self.pools, enabled=prefix_caching)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        # Single tokens go first, so they must never fill the budget: a longer chunk would wait for ever.
        self._max_num_seqs = max(1, min(max_num_seqs, max_step_tokens - 1))
        self._max_step_tokens = max_step_tokens
        self._num_steps = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, running or waiting, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def distrust(self, sequence: Sequence) -> None:
        """Lets no other sequence share what one has computed."""
        self.pools.forget(sequence)

    def schedule(self) -> Step:
        """Reserves blocks and picks chunks; at least one when there is any sequence."""
        self._num_steps += 1
        self.pools.trim(self.running)
        preempted = self._grow_running()
        if not preempted:
            self._admit()
        return Step(tuple(self._pick_chunks()))

    def update(self, step: Step, token_ids: Seq[int | None]) -> None:
        """Moves progress: `token_ids` are the drawn tokens of `step.sampling`, None where none was drawn."""
        for chunk in step.chunks:
            chunk.sequence.num_computed += chunk.num_tokens
            self.prefix_cache.remember(chunk.sequence)
        for chunk, token_id in zip(step.sampling, token_ids, strict=True):
            if token_id is not None and chunk.sequence.append(token_id):
                # Shared blocks must not be written again: the next window gets blocks of its own.
                self._release(chunk.sequence)

    def check_integrity(self) -> None:
        """Raises AssertionError when blocks are lost, shared, or owned by a sequence that waits."""
        self.pools.check_integrity(self.running, self.waiting)
        self.prefix_cache.check_integrity(self.running)

    def _grow_running(self) -> bool:
        """Gives every running sequence blocks for its whole context, oldest first.

        The youngest gives way when there are too few. The oldest always fits: nothing larger than the
        cache is admitted to the engine.
        """
        num_before, index = len(self.running), 0
        while index < len(self.running):
            if self.pools.grow(self.running[index]):
                index += 1
            else:
                self._preempt(self.running[-1])
        return len(self.running) < num_before

    def _admit(self) -> None:
        """Takes in sequences that wait, in order. One that would compute what another is computing right now
        is passed over until it can share it."""
        held: list[Sequence] = []
        while self.waiting and len(self.running) < self._max_num_seqs:
            sequence = self.waiting.popleft()
            if self.prefix_cache.is_coming(sequence):
                held.append(sequence)
                continue
            if not self.prefix_cache.attach(sequence):
                self.waiting.appendleft(sequence)
                break
            self.running.append(sequence)
        self.waiting.extendleft(reversed(held))

    def _pick_chunks(self) -> list[Chunk]:
        """Single tokens first, then what waited longest: a long window cannot starve the others."""
        budget = self._max_step_tokens
        chunks: list[Chunk] = []
        for sequence in sorted(self.running, key=lambda s: (s.num_remaining > 1, s.last_step)):
            if budget == 0:
                break
            num_remaining = sequence.num_remaining
            num_tokens = min(num_remaining, budget)
            chunks.append(Chunk(sequence, sequence.num_computed, num_tokens, num_tokens == num_remaining))
            self.pools.place(sequence, sequence.num_computed + num_tokens)
            sequence.last_step = self._num_steps
            budget -= num_tokens
        return chunks

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; what has been evicted till then is computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.prefix_cache.detach(sequence)
        self.pools.release(sequence)
        sequence.num_computed = 0
