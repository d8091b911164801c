"""Sequence: the engine's view of one request while it runs. Only the engine's thread touches it.

    token_ids     prompt and output so far
    window_start  first token the model still sees; moves only when the context slides
    num_computed  tokens of the window whose keys and values are in the cache
    block_ids     where they are

There is no phase: a sequence has tokens still to compute, and when there are none, the next one is drawn.
"""

from coordinator.engine.request import FinishReason, Output, Request, RequestTimings
from moe_model.errors import ExpertMeshError


class Sequence:
    """Progress of one request."""

    def __init__(self, request: Request, max_seq_len: int) -> None:
        self.request = request
        self.token_ids = list(request.prompt_ids)
        self.num_computed = 0
        self.block_ids: list[int] = []
        self.last_step = 0
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self._max_seq_len = max_seq_len
        self.window_start = max(0, len(self.token_ids) - max_seq_len)

    @property
    def context_len(self) -> int:
        """Tokens the model sees."""
        return len(self.token_ids) - self.window_start

    @property
    def num_remaining(self) -> int:
        """Tokens to run through the model before the next one can be drawn."""
        return self.context_len - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)

    def context(self, start: int, count: int) -> list[int]:
        """Token ids of the window from position `start`."""
        first = self.window_start + start
        return self.token_ids[first : first + count]

    def append(self, token_id: int) -> None:
        """Adds a drawn token. When the window slides, every cached key belongs to another position."""
        self.token_ids.append(token_id)
        if self.context_len > self._max_seq_len:
            self.window_start = len(self.token_ids) - self._max_seq_len
            self.num_computed = 0

    def finish_reason(self) -> tuple[FinishReason | None, int | None]:
        """Why the sequence ends with its last token, and the stop token if that is why."""
        rules, last = self.request.stop, self.token_ids[-1]
        if self.num_output_tokens >= rules.min_tokens:
            ends = rules.stop_token_ids if rules.ignore_eos else rules.stop_token_ids | rules.eos_token_ids
            if last in ends:
                return FinishReason.STOP, last
        if self.num_output_tokens >= self.max_output_tokens:
            return FinishReason.LENGTH, None
        return None, None

    @property
    def max_output_tokens(self) -> int:
        return max_output_tokens(self.request, self._max_seq_len)

    def last_output(
        self,
        now: float,
        token_ids: tuple[int, ...] = (),
        reason: FinishReason | None = None,
        stop_token_id: int | None = None,
        error: ExpertMeshError | None = None,
    ) -> Output:
        """The output that ends this request, with its timings."""
        arrival = self.request.arrival_time
        timings = RequestTimings(
            queue_time=(self.first_scheduled or now) - arrival,
            time_to_first_token=(self.first_token or now) - arrival,
            total_time=now - arrival,
        )
        return Output(self.request.request_id, token_ids, reason, stop_token_id, error, timings)


def max_output_tokens(request: Request, max_seq_len: int) -> int:
    """The request's own limit, and under STOP what is left of the context."""
    if request.stop.context_overflow == "slide":
        return request.stop.max_tokens
    return min(request.stop.max_tokens, max_seq_len - len(request.prompt_ids))
