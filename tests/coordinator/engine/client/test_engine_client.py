"""EngineClients: streams under a reader that lags, leaves or comes back. Conditions, no sleeps."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest

from coordinator.engine.client.base import PART, EngineClient
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.step import Step
from coordinator.engine.messages.errors import (
    CapacityError,
    DuplicateRequestError,
    EngineClosedError,
    EngineError,
    RequestExpiredError,
)
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.request import Request
from moe_model.errors import ExpertsLostError
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.client.clients import CLIENTS, MakeClient, heard
from tests.coordinator.engine.fakes import CountingRunner, GatedRunner, ScriptedRunner, engine_over
from tests.models import expected_tokens, make_request, random_reference, tiny_engine

WAIT = 30.0


async def read(engine: EngineClient, request: Request) -> tuple[list[int], Output]:
    tokens: list[int] = []
    last = None
    async for output in engine.stream(request):
        assert output.request_id == request.request_id
        assert last is None
        tokens += output.token_ids
        last = output if output.is_last else None
    assert last is not None
    return tokens, last


async def entered(runner: GatedRunner) -> None:
    assert await asyncio.to_thread(runner.entered.acquire, True, WAIT)


async def flush(engine: EngineClient, runner: GatedRunner | None = None) -> None:
    """Returns when the engine has carried out every command given so far."""
    await heard(engine)
    if runner is not None:
        runner.permit(2)
    await read(engine, make_request("flush", (1,), 1))


@pytest.fixture(params=list(CLIENTS))
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    return CLIENTS[request.param]


@pytest.fixture
async def free(make_client: MakeClient) -> AsyncIterator[EngineClient]:
    engine = await make_client(EngineThread(engine_over(CountingRunner())))
    yield engine
    assert await engine.close()


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
async def gated(runner: GatedRunner, make_client: MakeClient) -> AsyncIterator[EngineClient]:
    engine = await make_client(EngineThread(engine_over(runner)))
    yield engine
    runner.permit(10_000)
    assert await engine.close()


def check_idle(engine: EngineClient) -> None:
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, len(engine.request_ids)) == (0, 0, 0)
    assert stats.num_free_blocks == stats.num_blocks


async def test_many_streams_at_once_equal_the_oracle(make_client: MakeClient) -> None:
    reference = random_reference()
    engine = await make_client(EngineThread(tiny_engine(reference.model, num_blocks=7)))
    requests = [
        make_request(f"r{n}", (n, 2 * n, 5), 4 + n, SamplingParams(temperature=n % 3, seed=n))
        for n in range(12)
    ]
    results = await asyncio.gather(*(read(engine, request) for request in requests))
    for request, (tokens, last) in zip(requests, results, strict=True):
        assert tokens == expected_tokens(reference, request)
        assert last.finish_reason is FinishReason.LENGTH
    check_idle(engine)
    assert await engine.close()


async def test_a_reader_that_lags_gets_everything_merged(gated: EngineClient, runner: GatedRunner) -> None:
    async with aclosing(gated.stream(make_request("a", (1, 2, 3), 6))) as stream:
        runner.permit(1)
        first = await anext(stream)
        assert list(first.token_ids) == [3]
        runner.permit(5)
        # A second stream's end shows that all steps of the first are over and delivered.
        runner.permit(10)
        await read(gated, make_request("b", (1,), 8))
        merged = await anext(stream)
        assert list(merged.token_ids) == [4, 5, 6, 7, 8]
        assert merged.finish_reason is FinishReason.LENGTH
        assert merged.timings is not None
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    check_idle(gated)


async def test_tokens_merged_with_an_error_come_before_it(make_client: MakeClient) -> None:
    gate = threading.Event()

    def fail_third(number: int, step: Step) -> None:
        assert number == 1 or gate.wait(WAIT)
        if number >= 3 and any(len(chunk.sequence.request.prompt_ids) == 3 for chunk in step.chunks):
            raise ExpertsLostError("experts are lost")

    engine = await make_client(EngineThread(engine_over(ScriptedRunner(fail_third))))
    async with aclosing(engine.stream(make_request("a", (1, 2, 3), 6))) as stream:
        assert list((await anext(stream)).token_ids) == [3]
        gate.set()
        # The second of these ends after the failing step, or in it: token and error are both there by then.
        for _ in range(2):
            with suppress(ExpertsLostError):
                await flush(engine)
        assert list((await anext(stream)).token_ids) == [4]
        with pytest.raises(ExpertsLostError):
            await anext(stream)
    check_idle(engine)
    assert await engine.close()


async def test_leaving_early_frees_everything_within_a_step(gated: EngineClient, runner: GatedRunner) -> None:
    async with aclosing(gated.stream(make_request("a", (1, 2, 3), 9))) as stream:
        runner.permit()
        await anext(stream)
        await entered(runner)
        await entered(runner)
    assert not gated.request_ids
    num_steps = len(runner.steps)
    await flush(gated, runner)
    check_idle(gated)
    a_steps = [
        s for s in runner.steps[num_steps:] if any("a/" in c.sequence.request.request_id for c in s.chunks)
    ]
    assert len(a_steps) <= 1, "only the step that was under way"


async def test_a_cancelled_reader_frees_everything(gated: EngineClient, runner: GatedRunner) -> None:
    reader = asyncio.create_task(read(gated, make_request("a", max_tokens=9)))
    await entered(runner)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await flush(gated, runner)
    check_idle(gated)


async def test_abort_ends_a_stream_with_its_reason(gated: EngineClient, runner: GatedRunner) -> None:
    reader = asyncio.create_task(read(gated, make_request("a", (1, 2, 3), 9)))
    await entered(runner)
    assert await gated.abort(["unknown"]) == []
    assert await gated.abort(["unknown", "a"]) == ["a"]
    await heard(gated)
    runner.permit()
    tokens, last = await reader
    assert (tokens, last.finish_reason) == ([3], FinishReason.ABORT)
    check_idle(gated)


async def test_abort_ends_all_prompts_of_a_request_or_everything(
    gated: EngineClient, runner: GatedRunner
) -> None:
    names = [f"a{PART}0", f"a{PART}1", "b"]
    readers = [asyncio.create_task(read(gated, make_request(name, (1, 2, 3), 9))) for name in names]
    await entered(runner)
    assert await gated.abort(["a"]) == ["a"]
    await heard(gated)
    runner.permit()
    for reader in readers[:2]:
        assert (await reader)[1].finish_reason is FinishReason.ABORT
    assert await gated.abort() == ["b"]
    await heard(gated)
    await flush(gated, runner)
    assert (await readers[2])[1].finish_reason is FinishReason.ABORT
    check_idle(gated)


async def test_an_id_that_is_running_is_refused(gated: EngineClient, runner: GatedRunner) -> None:
    reader = asyncio.create_task(read(gated, make_request("a", (1, 2, 3), 2)))
    await entered(runner)
    with pytest.raises(DuplicateRequestError, match="a is already running"):
        await read(gated, make_request("a"))
    runner.permit(2)
    assert (await reader)[0] == [3, 4]
    check_idle(gated)


async def test_an_id_used_again_at_once_gets_its_own_tokens(gated: EngineClient, runner: GatedRunner) -> None:
    for length in (1, 4, 2, 5):
        async with aclosing(gated.stream(make_request("a", (9,) * 6, 6))) as stream:
            first = asyncio.ensure_future(anext(stream))
            await entered(runner)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        await heard(gated)
        runner.permit(3)
        tokens, _ = await read(gated, make_request("a", (1,) * length, 2))
        assert tokens == [length, length + 1]
        while runner.entered.acquire(blocking=False):
            pass
    check_idle(gated)


async def test_a_request_that_cannot_be_taken_raises(free: EngineClient, make_client: MakeClient) -> None:
    engine = await make_client(EngineThread(engine_over(CountingRunner(), num_blocks=1)))
    with pytest.raises(CapacityError):
        await read(engine, make_request("a", (1,) * 9, 3))
    assert (await read(engine, make_request("a", (1,), 2)))[0] == [1, 2]
    check_idle(engine)
    assert await engine.close()


async def test_close_ends_open_streams_and_takes_no_more(gated: EngineClient, runner: GatedRunner) -> None:
    readers = [asyncio.create_task(read(gated, make_request(name, max_tokens=9))) for name in "ab"]
    await entered(runner)
    closing = asyncio.create_task(gated.close())
    for reader in readers:
        with pytest.raises(EngineClosedError):
            await reader
    runner.permit(5)
    assert await closing
    with pytest.raises(EngineClosedError):
        await read(gated, make_request("c"))
    check_idle(gated)


async def test_close_says_when_a_step_outlasts_it(gated: EngineClient, runner: GatedRunner) -> None:
    reader = asyncio.create_task(read(gated, make_request("a")))
    await entered(runner)
    assert not await gated.close(timeout=0.01)
    with pytest.raises(EngineClosedError):
        await reader


def test_a_loop_that_ends_first_harms_no_thread() -> None:
    """The engine finds no reader to tell; its thread goes on and can be closed."""
    runner = GatedRunner()
    engine: Engine = engine_over(runner)

    async def leave() -> EngineThread:
        thread = EngineThread(engine)
        front = InProcessEngine(thread)
        stream = front.stream(make_request("a", max_tokens=2))
        pending = asyncio.ensure_future(anext(stream))
        await entered(runner)
        pending.cancel()
        return thread

    thread = asyncio.run(leave())
    runner.permit(5)
    assert thread.close(WAIT)


async def test_an_engine_that_loses_its_bookkeeping_ends_every_stream(make_client: MakeClient) -> None:
    """The request whose end fails is in no list of the engine's any more; its caller must hear of it."""

    class Forgetful(CountingRunner):
        def forget(self, key: int) -> None:
            raise RuntimeError("boom")

    engine = await make_client(EngineThread(engine_over(Forgetful())))
    try:
        readers = [
            asyncio.ensure_future(anext_until_the_end(engine, make_request(name, max_tokens=n)))
            for name, n in (("a", 2), ("b", 200))
        ]
        for error in await asyncio.gather(*readers):
            assert isinstance(error, EngineError)
        assert engine.stats().stopped
        assert isinstance(await anext_until_the_end(engine, make_request("c")), EngineError)
    finally:
        assert await engine.close()


async def anext_until_the_end(engine: EngineClient, request: Request) -> BaseException | None:
    try:
        async for _ in engine.stream(request):
            pass
    except EngineError as error:
        return error
    return None


async def test_a_request_that_is_too_old_ends_after_what_was_there(free: EngineClient) -> None:
    found: list[int] = []

    async def collect() -> None:
        async for output in free.stream(make_request("old", max_tokens=10**9), max_seconds=0.2):
            found.extend(output.token_ids)

    with pytest.raises(RequestExpiredError):
        await collect()
    assert found
    await flush(free)
    assert not free.request_ids
    assert free.stats().num_running == 0
