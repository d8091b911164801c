"""The generations behind one HTTP request: one per prompt, side by side, as one stream of their events.

Whoever leaves ends them all; what they raise comes out as an ApiError.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from coordinator.api.errors import ApiError, Code, translate
from coordinator.api.gate import draining
from coordinator.api.generations import Caller, Facts, Front, run
from moe_model.errors import WorldError
from protos.expertmesh.v1 import generation_pb2 as pb

logger = logging.getLogger(__name__)

# Events that may wait between a generation and its reader; more would only hide that the reader is slow.
MAX_WAITING = 8


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """An event of the generation of one of the request's prompts."""

    prompt: int
    event: pb.GenerateStreamResponse


_Item = PromptEvent | ApiError | None


@asynccontextmanager
async def generations(
    messages: Sequence[pb.GenerateRequest], caller: Caller, front: Front
) -> AsyncIterator[AsyncIterator[PromptEvent]]:
    """The events of all messages. Iterating raises ApiError; leaving the block ends what still runs."""
    queue: asyncio.Queue[_Item] = asyncio.Queue(MAX_WAITING)
    tasks = [
        asyncio.create_task(_feed(queue, number, message, _caller_of(caller, number, len(messages)), front))
        for number, message in enumerate(messages)
    ]
    try:
        yield _events(queue, len(tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(queue: asyncio.Queue[_Item], num_open: int) -> AsyncIterator[PromptEvent]:
    while num_open:
        item = await queue.get()
        if isinstance(item, ApiError):
            raise item
        if item is None:
            num_open -= 1
        else:
            yield item


async def _feed(
    queue: asyncio.Queue[_Item], number: int, message: pb.GenerateRequest, caller: Caller, front: Front
) -> None:
    """One prompt's events into the queue, then None, or the error that ended it."""
    try:
        async with aclosing(_observed(message, caller, front)) as events:
            async for event in events:
                await queue.put(PromptEvent(number, event))
    except ApiError as error:
        await queue.put(error)
    else:
        await queue.put(None)


async def _observed(
    message: pb.GenerateRequest, caller: Caller, front: Front
) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
    """`run`, with its observer told once how it ended, and every exception turned into ours."""
    facts, started = Facts(), time.monotonic()
    error: ApiError | None = None
    complete = False
    try:
        async with aclosing(run(message, caller, front, facts)) as events:
            async for event in events:
                complete = event.WhichOneof("event") == "summary"
                yield event
    except asyncio.CancelledError:
        if not front.gate.was_evicted():
            raise
        error = draining()
        raise error from None
    except Exception as unforeseen:  # noqa: BLE001 - the top of a request
        error = translate(unforeseen, caller.request_id)
        _log(unforeseen, error, caller)
        raise error from None
    finally:
        facts.total_time = time.monotonic() - started
        front.observer.finished(caller, facts, error, cancelled=error is None and not complete)


def _log(unforeseen: Exception, error: ApiError, caller: Caller) -> None:
    """The details that the client is not told."""
    if isinstance(unforeseen, WorldError):
        logger.warning("request %s: %s", caller.request_id, unforeseen)
    elif error.code is Code.INTERNAL:
        logger.error("request %s: internal error", caller.request_id, exc_info=unforeseen)


def _caller_of(caller: Caller, number: int, count: int) -> Caller:
    """Each prompt of several is a request of its own."""
    if count == 1:
        return caller
    return replace(caller, request_id=f"{caller.request_id[:120]}-{number}")
