"""EngineServer: an engine in a process of its own, for any number of fronts that connect to its socket.

The engine's thread itself sends what a step says, and waits for no front; the event loop receives, carries
out commands, tells news and sends what could not be sent at once.
"""

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.engine.client.handlers import Handlers, Operated, engine_handlers
from coordinator.engine.client.receiver import Receiver
from coordinator.engine.client.request_streams import number_of
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import Ended, EndRequests
from coordinator.engine.messages.errors import EngineError, MessageError, SlowConsumerError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import Answer, Beat, Call, Hello
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Abort, Request
from coordinator.engine.process.channel import Channel
from coordinator.engine.process.commands import Commands
from coordinator.engine.process.frames import frame_of
from coordinator.engine.process.front_link import FrontLink
from coordinator.engine.process.listening import listen_at, user_of
from coordinator.engine.process.news import EngineNews
from coordinator.engine.process.routes import Routes
from coordinator.engine.process.version import VERSION

logger = logging.getLogger(__name__)

# Seconds between two looks at what fronts are told without asking, and between two signs of life.
TICK = 0.5
_BEAT = frame_of(Beat())


class EngineServer:
    """Owns the engine's thread; made, used and closed on one event loop.

    `failed` is set when the engine's own bookkeeping has failed: only another engine serves then.
    """

    def __init__(self, thread: EngineThread, operated: Operated | None = None) -> None:
        operated = operated or Operated()
        self._thread = thread
        own: Handlers = {EndRequests: self._end_requests}
        self._commands = Commands({**engine_handlers(thread), **operated.handlers, **own})
        self._loop = asyncio.get_running_loop()
        self._news = EngineNews(operated)
        operated.traces.follow(self._trace)
        self._routes = Routes()
        # Changed on the loop, read on the engine's thread: replaced, never changed in place.
        self._links: tuple[FrontLink, ...] = ()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_started = False
        self.failed = asyncio.Event()
        self._closed = asyncio.Event()
        self._listener: socket.socket | None = None
        self._path = Path()

    async def serve(self, path: Path) -> None:
        """Listens, and starts the engine's thread; returns at once. Raises ConfigError."""
        self._news.changed(time.monotonic(), everything=True)
        self._listener, self._path = listen_at(path), path
        self._thread.start(self._publish, self._stopped)
        self._is_started = True
        self._spawn(self._tell_news())
        self._await_fronts()

    async def close(self, timeout: float = 10.0) -> bool:
        """Ends every connection and the engine; False when a step outlasts `timeout`."""
        self._closed.set()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        for link in self._links:
            link.channel.close()
            self._forget(link)
        self._commands.close()
        if not self._is_started:
            return True
        return await asyncio.to_thread(self._thread.close, timeout)

    # Fronts come and go.

    def _await_fronts(self) -> None:
        if not self._closed.is_set() and self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # As when there are too many open files: the front waits in the socket's queue.
            logger.error("a front cannot be taken: %s", error)
            asyncio.get_running_loop().remove_reader(self._listener)
            asyncio.get_running_loop().call_later(TICK, self._await_fronts)
            return
        if user_of(sock) != os.geteuid():
            logger.warning("a process of user %d was refused", user_of(sock))
            sock.close()
            return
        self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        link = FrontLink(next(self._numbers), self._thread.stats)
        link.receiver = Receiver(self._thread, self._publish)
        link.channel = Channel(
            sock,
            lambda message: self._receive(link, message),
            lambda why: self._left(link, why),
            lambda: self._drained(link),
        )
        link.tell([frame_of(Hello(VERSION)), *self._news.known()])
        # The engine's thread knows it from here on.
        self._links = (*self._links, link)

    def _left(self, link: FrontLink, why: str) -> None:
        num_open = self._forget(link)
        logger.log(
            logging.WARNING if num_open else logging.INFO,
            "front %d: %s; %d requests of it are ended",
            *(link.number, why, num_open),
        )

    def _forget(self, link: FrontLink) -> int:
        """Frees what the front's requests hold; returns how many there were."""
        self._links = tuple(each for each in self._links if each is not link)
        link.receiver.close()
        keys = self._routes.keys_of(link)
        for key in keys:
            self._routes.remove(key)
            self._thread.abort(key)
        return len(keys)

    def _drained(self, link: FrontLink) -> None:
        if link.catch_up():
            link.tell(self._news.known())

    # What a front says.

    def _receive(self, link: FrontLink, message: object) -> None:
        """Raises MessageError for what no front of ours says."""
        match message:
            case Hello() if not link.is_known:
                if message.version != VERSION:
                    raise MessageError(f"it is of version {message.version}, the engine of {VERSION}")
                link.is_known = True
            case Request() if link.is_known:
                self._begin(link, message)
            case Abort() if link.is_known:
                link.receiver.receive(Abort(_key(link, message.request_id)))
            case Call() if link.is_known:
                self._spawn(self._carry_out(link, message))
            case _:
                raise MessageError(f"it says {type(message).__name__}, which it may not say now")

    def _begin(self, link: FrontLink, request: Request) -> None:
        key = _key(link, request.request_id)
        try:
            number = number_of(request.request_id)
        except ValueError:
            raise MessageError("it sends a request without a number") from None
        if key in self._routes or request.num_sequences < 1 or not 0 <= number < 1 << 63:
            raise MessageError("it sends a request twice, or one without sequences, or with a wild number")
        self._routes.add(key, link, number, request.num_sequences)
        link.receiver.receive(replace(request, request_id=key, trace=link.marked(request.trace)))

    async def _carry_out(self, link: FrontLink, call: Call) -> None:
        result = await self._commands.result_of(call)
        # A caller that gets the answer knows already what has changed.
        self._tell_changes(everything=True)
        link.channel.send(frame_of(Answer(call.number, result)))

    def _end_requests(self, command: EndRequests) -> Ended:
        """On a command's thread."""
        wanted = None if command.request_ids is None else frozenset(command.request_ids)
        found = self._routes.named(wanted)
        for link, key in (each for parts in found.values() for each in parts):
            self._loop.call_soon_threadsafe(link.receiver.receive, Abort(key))
        return Ended(tuple(found))

    # What fronts are told.

    def _publish(self, outputs: Sequence[Output]) -> None:
        """On the engine's thread after each step; on the loop for requests that cannot be taken."""
        for link, said in self._routes.sort(outputs).items():
            slow = link.say(said)
            if slow:
                self._end_slow(link, slow)

    def _end_slow(self, link: FrontLink, numbers: list[int]) -> None:
        """The front hears of it when it reads again."""
        failure = Failure.of(SlowConsumerError("more output waits to be read than one request may hold"))
        keys = self._routes.keys_of(link, numbers)
        for key in keys:
            self._thread.abort(key)
        self._publish([Output(key, failure=failure) for key in keys])

    def _trace(self, step: TracedStep) -> None:
        """On the engine's thread, before the step's outputs."""
        for link in self._links:
            link.trace(step)

    def _stopped(self, error: EngineError) -> None:
        """On the engine's thread: it has lost track of its requests."""
        failure = Failure.of(error)
        self._publish([Output(key, failure=failure) for key in self._routes.all_keys()])
        # A loop that has ended ends the engine anyway.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.failed.set)

    async def _tell_news(self) -> None:
        """Until it is closed, soon after something has changed."""
        while not self._closed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), TICK)
            self._tell_changes()

    def _tell_changes(self, *, everything: bool = False) -> None:
        frames = [_BEAT]
        try:
            frames += self._news.changed(time.monotonic(), everything=everything)
        except Exception:
            logger.exception("the engine's side cannot be looked at")
        for link in self._links:
            link.tell(frames)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(link: FrontLink, request_id: str) -> str:
    """The engine's key of a front's request."""
    return f"{request_id}@{link.number}"
