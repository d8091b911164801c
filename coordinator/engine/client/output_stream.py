"""OutputStream: what one request's reader has not read yet, merged, in bounded memory."""

import asyncio

from coordinator.engine.messages.output import Output, PromptDetails, RoutedExperts, TokenLogprobs

MAX_UNREAD_BYTES = 8 << 20
# What Python needs for a token id, for a TokenLogprobs, and for one entry of its top.
_TOKEN_BYTES, _LOGPROB_BYTES, _TOP_BYTES = 32, 160, 120


class Unread:
    """At most one output per sequence: what has not been taken is merged with what comes."""

    def __init__(self, request_id: str, max_bytes: int = MAX_UNREAD_BYTES) -> None:
        """Outputs that are taken have this id."""
        self.request_id = request_id
        self._max_bytes = max_bytes
        self._news: dict[int, _News] = {}
        self._failed: Output | None = None
        self.num_bytes = 0

    def __bool__(self) -> bool:
        """Whether there is something to take."""
        return bool(self._news) or self._failed is not None

    def put(self, output: Output) -> bool:
        """False when too much is unread to take more in. A failure is always taken in; the first wins."""
        if output.failure is not None:
            self._failed = self._failed or output
        elif self.num_bytes > self._max_bytes:
            return False
        elif self._failed is None:
            self.num_bytes += _size(output)
            self._of(output.index).add(output)
        return True

    def put_token(self, index: int, token_id: int) -> bool:
        """As an output of a sequence that is this token and nothing else."""
        if self.num_bytes > self._max_bytes:
            return False
        if self._failed is None:
            self.num_bytes += _TOKEN_BYTES
            self._of(index).token_ids.append(token_id)
        return True

    def take(self) -> list[Output]:
        """All of it, a failure last."""
        outputs = [news.output(self.request_id, index) for index, news in self._news.items()]
        if self._failed is not None:
            outputs.append(self._failed)
        self._news.clear()
        self.num_bytes = 0
        return outputs

    def _of(self, index: int) -> "_News":
        news = self._news.get(index)
        if news is None:
            news = self._news[index] = _News()
        return news


class OutputStream(Unread):
    """Belongs to one event loop, and has one reader."""

    def __init__(self, request_id: str, max_bytes: int = MAX_UNREAD_BYTES) -> None:
        super().__init__(request_id, max_bytes)
        self._reader: asyncio.Future[None] | None = None
        self._is_due = False

    def put(self, output: Output) -> bool:
        is_taken = super().put(output)
        self.wake()
        return is_taken

    def wake(self) -> None:
        """The reader gets what there is. It is not told of what `put_token` takes in."""
        self._is_due = bool(self)
        if self._is_due and self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> list[Output]:
        """Waits for news and returns all of it, a failure last, and again if it is asked again."""
        if not self._is_due:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        self._is_due = self._failed is not None
        return self.take()


class _News:
    """Of one sequence."""

    __slots__ = ("last", "logprobs", "prompt", "routed_experts", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.routed_experts: list[RoutedExperts] = []
        self.prompt: PromptDetails | None = None
        self.last: Output | None = None

    def add(self, output: Output) -> None:
        assert self.last is None, "an output after the last one of its sequence"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.routed_experts += output.routed_experts
        self.prompt = _merged(self.prompt, output.prompt)
        if output.is_last:
            self.last = output

    def output(self, request_id: str, index: int) -> Output:
        last = self.last
        return Output(
            request_id,
            tuple(self.token_ids),
            None if last is None else last.finish_reason,
            None if last is None else last.stop,
            None,
            None if last is None else last.timings,
            index,
            tuple(self.logprobs),
            tuple(self.routed_experts),
            self.prompt,
        )


def _merged(first: PromptDetails | None, second: PromptDetails | None) -> PromptDetails | None:
    if first is None or second is None:
        return first or second
    return PromptDetails(
        first.num_cached + second.num_cached,
        (*first.logprobs, *second.logprobs),
        (*first.routed_experts, *second.routed_experts),
    )


def _size(output: Output) -> int:
    """Roughly, from above."""
    num_bytes = _TOKEN_BYTES * len(output.token_ids)
    if not output.logprobs and not output.routed_experts and output.prompt is None:
        return num_bytes
    num_bytes += sum(map(_logprob_size, output.logprobs)) + sum(map(_trace_size, output.routed_experts))
    if output.prompt is not None:
        num_bytes += sum(map(_logprob_size, output.prompt.logprobs))
        num_bytes += sum(map(_trace_size, output.prompt.routed_experts))
    return num_bytes


def _logprob_size(logprobs: TokenLogprobs) -> int:
    return _LOGPROB_BYTES + _TOP_BYTES * len(logprobs.top)


def _trace_size(trace: RoutedExperts) -> int:
    return trace.ids_TLK.nbytes
