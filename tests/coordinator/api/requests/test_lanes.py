"""Lanes: what takes long of one kind leaves the others their threads."""

import asyncio
import contextvars
import threading

import pytest

from coordinator.api.requests import lanes
from coordinator.api.requests.lanes import NUM_THREADS, Lane, Lanes, lane_of
from coordinator.api.shared.errors import Reason, translate
from expertmesh.v1 import generation_pb2 as pb
from moe_model.errors import BusyError
from tests.coordinator.api.fakes import PATIENCE


@pytest.mark.parametrize("busy", Lane)
async def test_a_full_lane_leaves_the_others_free(busy: Lane) -> None:
    threads, let_go = Lanes(), threading.Event()
    waiting = [asyncio.ensure_future(threads.run(busy, let_go.wait)) for _ in range(2 * NUM_THREADS)]
    try:
        for other in set(Lane) - {busy}:
            assert await asyncio.wait_for(threads.run(other, lambda: "done"), PATIENCE) == "done"
        assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        let_go.set()
        await asyncio.gather(*waiting)


async def test_waiting_for_a_thread_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, let_go = Lanes(), threading.Event()
    first = [asyncio.ensure_future(threads.run(Lane.CHATS, let_go.wait)) for _ in range(NUM_THREADS)]
    await asyncio.wait(first, timeout=0)
    monkeypatch.setattr(lanes, "WAIT_SECONDS", 0.0)
    late = asyncio.ensure_future(threads.run(Lane.CHATS, pytest.fail))
    await asyncio.wait([late], timeout=0.01)
    let_go.set()
    with pytest.raises(BusyError, match="too many chats are being prepared") as caught:
        await late
    assert await asyncio.gather(*first) == [True] * NUM_THREADS
    assert translate(caught.value, "id").reason is Reason.QUEUE_FULL


async def test_a_thread_knows_what_its_caller_knows() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("known")
    assert await Lanes().run(Lane.TEXTS, variable.get) == "known"


def test_a_message_goes_where_it_has_to_wait_longest() -> None:
    chat = pb.ChatPrompt(messages=[pb.ChatPrompt.Message(role="user", content="x")])
    constraint = pb.OutputConstraint(regex="a")
    assert lane_of(pb.GenerateRequest(text="x")) is Lane.TEXTS
    assert lane_of(pb.GenerateRequest(chat=chat)) is Lane.CHATS
    assert lane_of(pb.GenerateRequest(chat=chat, constraint=constraint)) is Lane.CONSTRAINTS
    with_tools = pb.ChatPrompt(messages=chat.messages, tools=[pb.Tool(name="f")])
    assert lane_of(pb.GenerateRequest(chat=with_tools)) is Lane.CONSTRAINTS
    assert lane_of(pb.TokenizeRequest(chat=chat)) is Lane.CHATS
    assert lane_of(pb.TokenizeRequest(text="x")) is Lane.TEXTS
    assert lane_of(pb.DetokenizeRequest()) is Lane.TEXTS
