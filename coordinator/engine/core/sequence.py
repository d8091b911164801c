"""Sequence: the engine's view of one continuation while it runs. Only the engine's thread touches it.

    token_ids     prompt and output so far
    window_start  first token the model still sees; moves only when the context slides
    num_computed  tokens of the window whose keys and values are in the cache
    num_reserved  tokens of the window that there are blocks for, or will be when their step comes
    tables        those blocks, for each group of layers; empty before the sequence first runs

There is no phase: a sequence has tokens still to compute, and when there are none, the next one is drawn.
"""

from collections.abc import Iterable

from coordinator.engine.cache.block_keys import BlockKeys
from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.core.drafts import PromptLookup
from coordinator.engine.core.prepared import NOTHING, Prepared
from coordinator.engine.messages.output import FinishReason, RequestTimings, Stop
from coordinator.engine.messages.request import Request, StopRules
from coordinator.engine.sampling.sampling_row import SamplingRow


class Sequence:
    """Progress of one continuation of a request.

    `key` is its own among all sequences of an engine; `version` is the number of the model's version that it
    began with and stays with; `prepared` is of its request.
    """

    def __init__(
        self,
        request: Request,
        max_seq_len: int,
        block_size: int,
        index: int = 0,
        key: int = 0,
        version: int = 0,
        prepared: Prepared = NOTHING,
    ) -> None:
        self.request = request
        self.index = index
        self.key = key
        self.version = version
        self.token_ids = list(request.prompt_ids)
        self.num_computed = 0
        self.tables: tuple[BlockTable, ...] = ()
        self.num_reserved = 0
        self.last_step = 0
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.num_cached: int | None = None
        # Of the prompt as a whole, only the first sequence tells.
        self.num_scored = 1 if index == 0 else len(request.prompt_ids)
        self.num_traced = 0 if index == 0 else len(request.prompt_ids)
        # Of which the routing is in the recording, if there is one.
        self.num_recorded = 0
        self.matcher = prepared.matcher()
        # Whether it generates at all, or only scores its prompt.
        self.draws = request.stop.max_tokens > 0
        self.row = SamplingRow(
            key,
            request.sampling,
            index,
            self.token_ids,
            len(request.prompt_ids),
            self.matcher,
            prepared.token_mask,
        )
        self._lookup: PromptLookup | None = None
        self._text = prepared.text()
        self._text_match: Stop | None = None
        self._keys = BlockKeys(request, block_size, version)
        self._max_seq_len = max_seq_len
        self._num_prompt = len(request.prompt_ids)
        self._min_tokens = request.stop.min_tokens
        self._max_tokens = max_output_tokens(request, max_seq_len)
        self._ends = _ends(request.stop)
        self.window_start = max(0, len(self.token_ids) - max_seq_len)

    @property
    def context_len(self) -> int:
        """Tokens the model sees."""
        return len(self.token_ids) - self.window_start

    @property
    def num_remaining(self) -> int:
        """Tokens to run through the model before the next one can be drawn."""
        return len(self.token_ids) - self.window_start - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self._num_prompt

    @property
    def reads_cache(self) -> bool:
        """Whether blocks that others have computed will do."""
        return self.index > 0 or not self.request.returns.needs_whole_prompt

    def context(self, start: int, count: int) -> list[int]:
        """Token ids of the window from position `start`."""
        first = self.window_start + start
        return self.token_ids[first : first + count]

    def block_keys(self, start: int, end: int) -> list[bytes]:
        """Keys of the full blocks [start, end) of a context that has not slid."""
        return self._keys.between(self.token_ids, start, end)

    def draft(self, most: int) -> tuple[int, ...]:
        """Tokens that may come next, at most so many: those that there is room for, and one more after them,
        which is drawn in any case.

        None before the first token, with which the prompt is told of. None under a constraint, whose state
        would have to go back: a mask that was asked for can use up its limits for good.
        """
        num_output = len(self.token_ids) - self._num_prompt
        room = min(self._max_tokens - num_output - 1, self._max_seq_len - self.context_len)
        most = min(most, room)
        if most < 1 or not num_output or self.matcher is not None:
            return ()
        if self._lookup is None:
            self._lookup = PromptLookup(self.token_ids)
        return self._lookup.draft(most)

    def append_all(self, token_ids: Iterable[int]) -> tuple[int, bool]:
        """Adds drawn tokens up to one that ends the sequence; how many after the first, and whether the last
        made the window slide. One before it may not."""
        num_added, slid = 0, False
        for token_id in token_ids:
            slid = self.append(token_id)
            num_added += 1
            if self.finish_reason()[0] is not None:
                break
        return num_added - 1, slid

    def append(self, token_id: int) -> bool:
        """Adds a drawn token. True when the window slid: every cached key now belongs to another position."""
        self.token_ids.append(token_id)
        if self.matcher is not None and token_id not in self.request.stop.eos_token_ids:
            self.matcher.advance(token_id)
        if self._text is not None:
            match = self._text.push(token_id)
            self._text_match = None if match is None else Stop(text=match)
        if len(self.token_ids) - self.window_start <= self._max_seq_len:
            return False
        self.window_start = len(self.token_ids) - self._max_seq_len
        return True

    def finish_reason(self) -> tuple[FinishReason | None, Stop | None]:
        """Why the sequence ends with its last token, and what it stopped at if that is why."""
        num_output = len(self.token_ids) - self._num_prompt
        if num_output >= self._min_tokens:
            last = self.token_ids[-1]
            if last in self._ends:
                return FinishReason.STOP, Stop(token_id=last)
            if self._text_match is not None:
                return FinishReason.STOP, self._text_match
        if self.matcher is not None and self.matcher.must_end and not self.request.stop.eos_token_ids:
            return FinishReason.STOP, None
        if num_output >= self._max_tokens:
            return FinishReason.LENGTH, None
        return None, None

    def timings(self, now: float) -> RequestTimings:
        """As of `now`, where the sequence ends."""
        arrival = self.request.arrival_time
        return RequestTimings(
            queue_time=(self.first_scheduled or now) - arrival,
            time_to_first_token=(self.first_token or now) - arrival,
            total_time=now - arrival,
        )


def _ends(rules: StopRules) -> frozenset[int]:
    """The tokens that end an output."""
    return rules.stop_token_ids if rules.ignore_eos else rules.stop_token_ids | rules.eos_token_ids


def max_output_tokens(request: Request, max_seq_len: int) -> int:
    """The request's own limit, and under STOP what is left of the context."""
    if request.stop.context_overflow == "slide":
        return request.stop.max_tokens
    return min(request.stop.max_tokens, max_seq_len - len(request.prompt_ids))
