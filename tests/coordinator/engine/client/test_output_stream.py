"""OutputStream: what is not read is merged, in bounded memory, and an error comes last."""

import asyncio

import numpy as np
import pytest

from coordinator.engine.client.output_stream import OutputStream
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import (
    FinishReason,
    Output,
    PromptDetails,
    RoutedExperts,
    TokenLogprobs,
)
from moe_model.errors import NumericError


def scores(*token_ids: int, num_top: int = 0) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(i, -1.0, 1, ((i, -1.0),) * num_top) for i in token_ids)


def trace(first: int) -> tuple[RoutedExperts, ...]:
    return (RoutedExperts(first, np.zeros((1, 2, 2), np.uint8)),)


async def test_each_sequence_is_merged_by_itself() -> None:
    stream = OutputStream("r")
    stream.put(Output("r", (1,), logprobs=scores(1), prompt=PromptDetails(4, scores(7), trace(0))))
    stream.put(Output("r", (5,), index=1))
    stream.put(Output("r", (2,), logprobs=scores(2), routed_experts=trace(1), prompt=PromptDetails(0)))
    stream.put(Output("r", (3,), FinishReason.LENGTH, logprobs=scores(3), routed_experts=trace(2)))
    first, second = await stream.get()
    assert (list(first.token_ids), first.finish_reason) == ([1, 2, 3], FinishReason.LENGTH)
    assert list(first.logprobs) == list(scores(1, 2, 3))
    assert [t.first_position for t in first.routed_experts] == [1, 2]
    assert first.prompt is not None
    assert (first.prompt.num_cached, list(first.prompt.logprobs)) == (4, list(scores(7)))
    assert (list(second.token_ids), second.index, second.is_last) == ([5], 1, False)


async def test_an_error_comes_after_what_was_generated_and_ends_it() -> None:
    stream, broken = OutputStream("r"), Failure.of(NumericError("broken"))
    stream.put(Output("r", (1,)))
    stream.put(Output("r", failure=broken))
    stream.put(Output("r", (2,)))
    stream.put(Output("r", failure=Failure.of(NumericError("another"))))
    outputs = await stream.get()
    assert [list(output.token_ids) for output in outputs] == [[1], []]
    assert outputs[-1].failure == broken


async def test_reading_waits_for_news() -> None:
    stream = OutputStream("r")
    reader = asyncio.ensure_future(stream.get())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(reader), 0.01)
    stream.put(Output("r", (1,)))
    assert len(await reader) == 1


@pytest.mark.parametrize("num_top", [0, 20])
async def test_what_nobody_reads_is_bounded(num_top: int) -> None:
    stream = OutputStream("r", max_bytes=100_000)
    taken = 0
    while stream.put(Output("r", (1,), logprobs=scores(1, num_top=num_top))):
        taken += 1
        assert taken < 2000
    assert taken > 20
    assert stream.put(Output("r", failure=Failure.of(NumericError("a failure is always taken"))))
    outputs = await stream.get()
    assert len(outputs[0].token_ids) == taken
    assert stream.put(Output("r", (1,))), "reading makes room"


async def test_one_large_output_is_taken_whatever_its_size() -> None:
    stream = OutputStream("r", max_bytes=10)
    assert stream.put(Output("r", prompt=PromptDetails(0, scores(*range(1000), num_top=20))))
    assert not stream.put(Output("r", (1,)))
