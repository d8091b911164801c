"""Which tokens of which sequences the next step computes. Policy only: no tensors, no threads.

    waiting --admit--> running --finish, abort--> gone
       ^                  |
       +-----preempt------+

`schedule` only reserves; `update` is the one place where progress moves. So a step that failed half-way
has consumed nothing and can be run again.
"""

from collections import deque
from collections.abc import Sequence as Seq

from coordinator.engine.cache.block_pools import BlockPools
from coordinator.engine.cache.cache_sizes import CacheSizes
from coordinator.engine.cache.prefix_cache import PrefixCache
from coordinator.engine.core.pacing import Pace
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.core.step import NOTHING_FURTHER, Chunk, Further, Step


class Scheduler:
    """Continuous batching under a token budget over a paged cache."""

    def __init__(
        self,
        sizes: CacheSizes,
        max_num_seqs: int,
        max_step_tokens: int,
        *,
        prefix_caching: bool = True,
        pace: Pace | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """`pace` says how much prefill running streams can bear; None: as much as fits the budget.
        `speculation` says whether sequences draft; None: they do not."""
        self.pools = BlockPools(sizes, max_step_tokens)
        self.prefix_cache = PrefixCache(self.pools, enabled=prefix_caching)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        # Single tokens go first, so they must never fill the budget: a longer chunk would wait for ever.
        self._max_num_seqs = max(1, min(max_num_seqs, max_step_tokens - 1))
        self._max_step_tokens = max_step_tokens
        self._pace = pace
        self._speculation = speculation
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
        if self._speculation is not None:
            self.pools.shrink(self.running)
        preempted = self._grow_running()
        if not preempted:
            self._admit()
        return Step(tuple(self._pick_chunks()))

    def update(self, step: Step, token_ids: Seq[int | None], further: Further = NOTHING_FURTHER) -> Further:
        """Moves progress: `token_ids` are the drawn tokens of `step.sampling`, None where none was drawn, and
        `further` what follows them. Returns as much of that as comes before a sequence's end."""
        taken: dict[int, Seq[int]] = {}
        for chunk in step.chunks:
            self._computed(chunk.sequence, chunk.num_known)
        for chunk, token_id in zip(step.sampling, token_ids, strict=True):
            if token_id is None:
                continue
            sequence, more = chunk.sequence, further.get(chunk.sequence.key, ()) if further else ()
            num_more, slid = (
                sequence.append_all((token_id, *more)) if more else (0, sequence.append(token_id))
            )
            if num_more:
                taken[sequence.key] = more[:num_more]
                # What the draft was right about is in the cache; what comes next is written over the rest.
                self._computed(sequence, num_more)
            if slid:
                # Shared blocks must not be written again: the next window gets blocks of its own.
                self._release(sequence)
        return taken

    def took(self, step: Step, seconds: float, num_new_tokens: int) -> None:
        """A step that was run as a whole lasted so long and gave so many tokens."""
        if self._pace is not None:
            self._pace.observe(step.load, seconds)
        if self._speculation is not None and all(c.num_known == 1 and c.samples for c in step.chunks):
            is_drafted = step.num_drafted > 0
            self._speculation.ran(len(step.chunks), num_new_tokens, seconds, is_drafted=is_drafted)

    def failed(self) -> None:
        """A step was not run as a whole."""
        if self._speculation is not None:
            self._speculation.failed()

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
            sequence = self.running[index]
            if sequence.context_len <= sequence.num_reserved or self.pools.grow(sequence):
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
            # From now on it waits, as those do that were in the step before.
            sequence.last_step = self._num_steps - 1
            self.running.append(sequence)
        self.waiting.extendleft(reversed(held))

    def _pick_chunks(self) -> list[Chunk]:
        """Single tokens first, then what waited longest: a long window cannot starve the others."""
        streams: list[Sequence] = []
        longer: list[Sequence] = []
        for sequence in self.running:
            (streams if sequence.num_remaining == 1 else longer).append(sequence)
        # The time of a step with prefill is shared out already.
        drafts = {} if longer or self._speculation is None else self._drafts(self._speculation, streams)
        chunks = [self._chunk(sequence, 1, 1) for sequence in streams if sequence.key not in drafts]
        chunks += [
            self._chunk(sequence, 1, 1, drafts[sequence.key])
            for sequence in streams
            if sequence.key in drafts
        ]
        budget = self._max_step_tokens - len(chunks)
        share = None
        if longer and chunks and self._pace is not None:
            share = self._pace.share(Step(tuple(chunks)).load)
        for sequence in sorted(longer, key=lambda s: s.last_step):
            num_remaining = sequence.num_remaining
            num_tokens = min(num_remaining, budget)
            if share is not None and num_tokens:
                num_tokens = share.take(sequence.num_computed, num_tokens)
            if not num_tokens:
                break
            chunks.append(self._chunk(sequence, num_tokens, num_remaining))
            budget -= num_tokens
        return chunks

    def _drafts(self, speculation: Speculation, streams: Seq[Sequence]) -> dict[int, tuple[int, ...]]:
        """By key of the sequence, oldest first, as far as there are blocks and budget: none gives way."""
        drafts = {}
        budget = self._max_step_tokens - len(streams)
        if streams and speculation.wanted(len(streams)):
            for sequence in streams:
                draft = sequence.draft(min(speculation.most, budget))
                draft = draft[: self.pools.stretch(sequence, len(draft))]
                if draft:
                    drafts[sequence.key] = draft
                    budget -= len(draft)
        return drafts

    def _chunk(
        self, sequence: Sequence, num_tokens: int, num_remaining: int, draft: tuple[int, ...] = ()
    ) -> Chunk:
        """The next tokens of a sequence, and places for them."""
        start, num_rows = sequence.num_computed, num_tokens + len(draft)
        self.pools.place(sequence, start + num_rows)
        sequence.last_step = self._num_steps
        return Chunk(sequence, start, num_rows, num_tokens == num_remaining, draft)

    def _computed(self, sequence: Sequence, num_tokens: int) -> None:
        """So many more tokens of its context are in the cache."""
        before, block_size = sequence.num_computed, self.pools.block_size
        sequence.num_computed = before + num_tokens
        if sequence.num_computed // block_size > before // block_size:
            self.prefix_cache.remember(sequence)

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
