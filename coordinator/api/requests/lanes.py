"""Lanes: threads in which requests are prepared, apart by what they may have to wait for.

A rendering waits for a process, a compile for the compiles of others, a long text for the processor. In one
pool for all of them, a few that take long would hold up those that do not.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import Message

from expertmesh.v1 import generation_pb2 as pb
from moe_model.errors import BusyError

# Of each lane. They start when they are needed; most of what they do lets others run meanwhile.
NUM_THREADS = 6
WAIT_SECONDS = 10.0

R = TypeVar("R")


class Lane(StrEnum):
    """What a message waits for."""

    TEXTS = "texts"
    CHATS = "chats"
    CONSTRAINTS = "constraints"


def lane_of(message: Message) -> Lane:
    """The slowest of what the message needs."""
    if isinstance(message, pb.GenerateRequest):
        # Calls of tools are kept to a grammar.
        if message.HasField("constraint") or message.chat.tools:
            return Lane.CONSTRAINTS
        return Lane.CHATS if message.WhichOneof("prompt") == "chat" else Lane.TEXTS
    is_chat = isinstance(message, pb.TokenizeRequest) and message.WhichOneof("input") == "chat"
    return Lane.CHATS if is_chat else Lane.TEXTS


def is_quick(message: Message) -> bool:
    """Whether a short message of its kind is dealt with in a millisecond. Each bad word is several texts."""
    has_words = isinstance(message, pb.GenerateRequest) and bool(message.sampling.bad_words)
    return lane_of(message) is Lane.TEXTS and not has_words


class Lanes:
    """The threads of one server."""

    def __init__(self) -> None:
        self._pools = {lane: ThreadPoolExecutor(NUM_THREADS, lane.value) for lane in Lane}

    async def run(self, lane: Lane, function: Callable[..., R], *arguments: object) -> R:
        """Raises BusyError when no thread of the lane came free in time."""
        latest, context = time.monotonic() + WAIT_SECONDS, contextvars.copy_context()

        def begin() -> R:
            if time.monotonic() > latest:
                raise BusyError(f"too many {lane.value} are being prepared")
            return context.run(function, *arguments)

        return await asyncio.get_running_loop().run_in_executor(self._pools[lane], begin)
