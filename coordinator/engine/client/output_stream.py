"""OutputStream: what one request's reader has not read yet, merged, in bounded memory."""

import asyncio

from msgspec.structs import replace

from coordinator.engine.messages.output import Output, PromptDetails, RoutedExperts, TokenLogprobs

MAX_UNREAD_BYTES = 8 << 20
# What Python needs for a token id, for a TokenLogprobs, and for one entry of its top.
_TOKEN_BYTES, _LOGPROB_BYTES, _TOP_BYTES = 32, 160, 120


class OutputStream:
    """At most one output per sequence: what has not been read is merged with what comes. One reader."""

    def __init__(self, max_bytes: int = MAX_UNREAD_BYTES) -> None:
        self._pending: dict[int, Output] = {}
        self._failed: Output | None = None
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._reader: asyncio.Future[None] | None = None

    def put(self, output: Output) -> bool:
        """False, and nothing is taken, when too much is unread. A failure is always taken, the first wins."""
        if output.failure is not None:
            self._failed = self._failed or output
        elif self._num_bytes > self._max_bytes:
            return False
        elif self._failed is None:
            self._num_bytes += _size(output)
            before = self._pending.get(output.index)
            self._pending[output.index] = output if before is None else _merged(before, output)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        return True

    async def get(self) -> list[Output]:
        """Waits for news and returns all of it, a failure last, and again if it is asked again."""
        if not self._pending and self._failed is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        outputs = list(self._pending.values())
        if self._failed is not None:
            outputs.append(self._failed)
        self._pending.clear()
        self._num_bytes = 0
        return outputs


def _merged(first: Output, second: Output) -> Output:
    assert not first.is_last, "an output after the last one of its sequence"
    return replace(
        second,
        token_ids=(*first.token_ids, *second.token_ids),
        logprobs=(*first.logprobs, *second.logprobs),
        routed_experts=(*first.routed_experts, *second.routed_experts),
        prompt=_merged_prompt(first.prompt, second.prompt),
    )


def _merged_prompt(first: PromptDetails | None, second: PromptDetails | None) -> PromptDetails | None:
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
