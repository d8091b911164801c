"""The generations behind one HTTP request: one per prompt, side by side, as one stream of their events."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from coordinator.api.requests.gate import draining
from coordinator.api.requests.responses import Caller, Facts, Front, Work, admitted
from coordinator.api.shared.errors import ApiError, translate
from coordinator.api.shared.request_log import log_details
from expertmesh.v1 import generation_pb2 as pb

# Events that may wait between a generation and its reader; more would only hide that the reader is slow.
MAX_WAITING = 8


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """An event of the generation of one of the request's prompts."""

    prompt: int
    event: pb.GenerateStreamResponse


_Item = PromptEvent | Exception | None


@asynccontextmanager
async def generations(
    messages: Sequence[pb.GenerateRequest], caller: Caller, front: Front
) -> AsyncIterator[AsyncIterator[PromptEvent]]:
    """The events of all messages. Leaving the block ends what still runs.

    Raises ApiError, whatever happened in the block or behind it; the observer is told once of each prompt.
    """
    end = _End(front, caller, [Facts() for _ in messages])
    try:
        async with admitted(messages, caller, front, end.facts) as works:
            end.works = works
            async with _side_by_side(works) as events:
                yield events
    except asyncio.CancelledError:
        if not front.gate.was_evicted():
            raise
        end.error = draining()
        raise end.error from None
    except Exception as unforeseen:  # noqa: BLE001 - the top of a request
        end.error = translate(unforeseen, caller.request_id)
        log_details(unforeseen, caller.request_id)
        raise end.error from None
    finally:
        end.tell()


@dataclass(slots=True)
class _End:
    """How a request ended, for its observer."""

    front: Front
    caller: Caller
    facts: Sequence[Facts]
    works: Sequence[Work] = ()
    error: ApiError | None = None
    started: float = field(default_factory=time.monotonic)

    def tell(self) -> None:
        """Of every prompt; of a request that was not admitted, once."""
        callers = [work.caller for work in self.works] or [self.caller]
        for caller, facts in zip(callers, self.facts, strict=False):
            facts.total_time = facts.total_time or time.monotonic() - self.started
            error = None if facts.is_complete else self.error
            cancelled = error is None and not facts.is_complete
            self.front.observer.finished(caller, facts, error, cancelled=cancelled)


@asynccontextmanager
async def _side_by_side(works: Sequence[Work]) -> AsyncIterator[AsyncIterator[PromptEvent]]:
    queue: asyncio.Queue[_Item] = asyncio.Queue(MAX_WAITING)
    tasks = [asyncio.create_task(_feed(queue, number, work)) for number, work in enumerate(works)]
    try:
        yield _events(queue, len(tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(queue: asyncio.Queue[_Item], num_open: int) -> AsyncIterator[PromptEvent]:
    while num_open:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            num_open -= 1
        else:
            yield item


async def _feed(queue: asyncio.Queue[_Item], number: int, work: Work) -> None:
    """One prompt's events into the queue, then None, or what ended it."""
    try:
        async with aclosing(work.events()) as events:
            async for event in events:
                await queue.put(PromptEvent(number, event))
        work.facts.total_time = time.monotonic() - work.valid.request.arrival_time
        work.facts.is_complete = True
    except Exception as error:  # noqa: BLE001 - it is raised again where the events are read
        await queue.put(error)
    else:
        await queue.put(None)
