"""Many requests at once, and callers that leave at any moment."""

import asyncio
import random
from contextlib import aclosing
from functools import partial

from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import CheckIntegrity
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.process.client import ProcessEngine
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.coordinator.engine.process.linked import SpokenThread, linked, read, request_of, until
from tests.models import make_request

NUM_STREAMS, NUM_STEPS = 500, 20


async def test_a_thousand_streams_over_two_fronts() -> None:
    """All of them begin, no token is lost and none is another stream's; the steps come from a thread."""
    thread = SpokenThread()
    async with linked(thread, num_fronts=2) as fronts:
        readers = [
            asyncio.create_task(read(front, request_of(f"r{n}")))
            for n in range(NUM_STREAMS)
            for front in fronts
        ]
        await until(lambda: len(thread.requests) == len(readers))
        keys = [key for n in range(NUM_STREAMS) for key in sorted(thread.keys[f"r{n}"], key=_front_of)]

        def steps() -> None:
            for step in range(NUM_STEPS):
                reason = FinishReason.STOP if step == NUM_STEPS - 1 else None
                thread.say([Output(key, (1000 * step + n,), reason) for n, key in enumerate(keys)])

        await asyncio.to_thread(steps)
        for number, outputs in enumerate(await asyncio.wait_for(asyncio.gather(*readers), 60)):
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == [1000 * step + number for step in range(NUM_STEPS)]


def _front_of(key: str) -> int:
    return int(key.rpartition("@")[2])


async def test_callers_that_leave_at_any_moment_leave_nothing() -> None:
    """Aborts race with outputs: by their callers, by operators, and by streams that are closed."""
    draw = random.Random(5)
    core = engine_over(CountingRunner(), max_seq_len=64, num_blocks=64, max_num_seqs=4)
    async with linked(EngineThread(core), num_fronts=2) as fronts:
        await asyncio.gather(*(_caller(fronts[n % 2], n, draw) for n in range(200)))
        for front in fronts:
            assert front.request_ids == []
            await asyncio.to_thread(front.call, CheckIntegrity())
            await until(partial(_is_idle, front))


def _is_idle(front: ProcessEngine) -> bool:
    stats = front.stats()
    return (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


async def _caller(front: ProcessEngine, number: int, draw: random.Random) -> None:
    num_wanted, way = draw.randrange(12), draw.choice(["read", "close", "abort", "cancel"])
    request = make_request(f"r{number}", (1,) * draw.randint(1, 5), 10)
    if way == "cancel":
        task = asyncio.create_task(read(front, request))
        await asyncio.wait([task], timeout=draw.random() / 50)
        task.cancel()
        await asyncio.wait([task])
        return
    tokens: list[int] = []
    async with aclosing(front.stream(request)) as stream:
        async for output in stream:
            tokens += output.token_ids
            if way == "close" and len(tokens) >= num_wanted:
                break
            if way == "abort" and len(tokens) >= num_wanted:
                await front.abort([request.request_id])
    first = len(request.prompt_ids)
    assert tokens == list(range(first, first + len(tokens)))
    assert way != "read" or len(tokens) == 10
