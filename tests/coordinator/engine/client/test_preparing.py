"""A constraint that takes long to build holds up its own request and no step."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from coordinator.engine.client.base import EngineClient
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.prepared import Preparer
from coordinator.engine.messages.errors import ConstraintError, EngineClosedError, EngineError
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.request import ConstraintSource, Request, TokenRules
from tests.coordinator.engine.client.clients import CLIENTS
from tests.coordinator.engine.constraints import WaitingBuilder
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.models import make_request

REGEX = ConstraintSource("regex", ("a+",))


@pytest.fixture
def builder() -> WaitingBuilder:
    return WaitingBuilder()


@pytest.fixture(params=list(CLIENTS))
async def engine(request: pytest.FixtureRequest, builder: WaitingBuilder) -> AsyncIterator[EngineClient]:
    core = engine_over(CountingRunner(), preparer=Preparer(32, constraints=builder))
    client = await CLIENTS[request.param](EngineThread(core))
    yield client
    builder.go_on.set()
    assert await client.close()


async def read(engine: EngineClient, request: Request) -> list[Output]:
    return [output async for output in engine.stream(request)]


def wants(source: ConstraintSource, request_id: str = "slow") -> Request:
    return replace(make_request(request_id, (1, 2), 3), constraint=source)


async def begun(builder: WaitingBuilder) -> None:
    assert await asyncio.to_thread(builder.begun.acquire, True, 30)


async def test_others_run_while_it_is_built(engine: EngineClient, builder: WaitingBuilder) -> None:
    slow = asyncio.create_task(read(engine, wants(REGEX)))
    await begun(builder)
    others = await read(engine, make_request("other", (1, 2, 3), 4))
    assert others[-1].finish_reason is FinishReason.LENGTH
    assert not slow.done()
    assert (engine.stats().num_waiting, engine.request_ids) == (0, ["slow"])
    builder.go_on.set()
    assert (await slow)[-1].finish_reason is FinishReason.LENGTH


async def test_one_that_is_built_begins_at_once(engine: EngineClient, builder: WaitingBuilder) -> None:
    builder.ready.append(REGEX)
    assert (await read(engine, wants(REGEX)))[-1].finish_reason is FinishReason.LENGTH


async def test_what_is_wrong_with_it_is_the_request_s_error(
    engine: EngineClient, builder: WaitingBuilder
) -> None:
    builder.go_on.set()
    with pytest.raises(ConstraintError, match="no start rule"):
        await read(engine, wants(ConstraintSource("grammar", ("",))))
    assert engine.request_ids == []


async def test_a_library_s_panic_ends_its_request_and_no_other(
    engine: EngineClient, builder: WaitingBuilder
) -> None:
    builder.go_on.set()
    panics = read(engine, wants(ConstraintSource("json_schema", ("{}",))))
    with pytest.raises(EngineError, match="could not be taken"):
        await asyncio.wait_for(panics, 30)
    assert (await read(engine, wants(REGEX, "next")))[-1].finish_reason is FinishReason.LENGTH


async def test_abort_while_it_is_built(engine: EngineClient, builder: WaitingBuilder) -> None:
    slow = asyncio.create_task(read(engine, wants(REGEX)))
    await begun(builder)
    assert await engine.abort(["slow", "other"]) == ["slow"]
    builder.go_on.set()
    (last,) = await slow
    assert (last.finish_reason, last.token_ids) == (FinishReason.ABORT, ())


async def test_a_reader_that_leaves_meanwhile_leaves_nothing(
    engine: EngineClient, builder: WaitingBuilder
) -> None:
    slow = asyncio.create_task(read(engine, wants(REGEX)))
    await begun(builder)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    builder.go_on.set()
    # The second one with this id is another request.
    assert (await read(engine, wants(REGEX)))[-1].finish_reason is FinishReason.LENGTH
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


async def test_close_while_it_is_built(engine: EngineClient, builder: WaitingBuilder) -> None:
    slow = asyncio.create_task(read(engine, wants(REGEX)))
    await begun(builder)
    assert await engine.close()
    with pytest.raises(EngineClosedError):
        await slow


async def test_rules_of_another_vocabulary_are_an_error_of_the_request_alone(engine: EngineClient) -> None:
    with pytest.raises(EngineError, match="could not be taken"):
        await read(engine, replace(make_request("odd"), token_rules=TokenRules((99,))))
    assert (await read(engine, make_request("fine", (1, 2), 3)))[-1].is_last
