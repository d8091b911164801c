"""EngineServer: an engine in a process of its own, for any number of fronts that connect to its socket.

The engine's thread itself sends what a step says, and waits for no front; the event loop receives, carries
out commands, tells news and sends what could not be sent at once.
"""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.engine.client.handlers import Operated, carry_out, engine_handlers
from coordinator.engine.client.receiver import Receiver
from coordinator.engine.client.request_streams import number_of
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.errors import EngineError, MessageError, SlowConsumerError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import Answer, Beat, Call, Hello
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Abort, Request
from coordinator.engine.process.channel import Channel
from coordinator.engine.process.frames import frame_of
from coordinator.engine.process.front_link import FrontLink, Said
from coordinator.engine.process.listening import listen_at
from coordinator.engine.process.news import EngineNews
from coordinator.engine.process.version import VERSION
from moe_model.errors import ExpertMeshError

logger = logging.getLogger(__name__)

# Seconds between two looks at what fronts are told without asking, and between two signs of life.
TICK = 0.5
# Of commands that are carried out at a time; more wait.
MAX_COMMANDS = 16
_BEAT = frame_of(Beat())


class _Route:
    """Where the outputs of one request go."""

    __slots__ = ("link", "num_open", "number")

    def __init__(self, link: FrontLink, number: int, num_open: int) -> None:
        self.link, self.number, self.num_open = link, number, num_open


class EngineServer:
    """Owns the engine's thread; made, used and closed on one event loop."""

    def __init__(self, thread: EngineThread, operated: Operated | None = None) -> None:
        operated = operated or Operated()
        self._thread = thread
        self._handlers = {**engine_handlers(thread), **operated.handlers}
        self._news = EngineNews(operated)
        operated.traces.follow(self._trace)
        self._executor = ThreadPoolExecutor(MAX_COMMANDS, "command")
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        # Changed on the loop, read on the engine's thread: replaced, never changed in place.
        self._links: tuple[FrontLink, ...] = ()
        # By the engine's keys of requests.
        self._routes: dict[str, _Route] = {}
        self._closed = asyncio.Event()
        self._listener: socket.socket | None = None
        self._path: Path | None = None

    async def serve(self, path: Path) -> None:
        """Starts the engine's thread and listens; returns at once. Raises ConfigError."""
        self._listener, self._path = listen_at(path), path
        self._news.changed(time.monotonic(), everything=True)
        self._thread.start(self._publish, self._stopped)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener, self._accept)
        self._spawn(self._tell_news())

    async def close(self, timeout: float = 10.0) -> bool:
        """Ends every connection and the engine; False when a step outlasts `timeout`."""
        if self._listener is not None and self._path is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._path.unlink(missing_ok=True)
            self._listener = None
        self._closed.set()
        for task in self._tasks:
            task.cancel()
        for link in self._links:
            link.channel.close()
            self._forget(link)
        self._executor.shutdown(wait=False, cancel_futures=True)
        return await asyncio.to_thread(self._thread.close, timeout)

    def _accept(self) -> None:
        assert self._listener is not None
        with suppress(BlockingIOError):
            sock, _ = self._listener.accept()
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
        logger.warning("front %d: %s", link.number, why)
        self._forget(link)

    def _forget(self, link: FrontLink) -> None:
        """Frees what the front's requests hold."""
        self._links = tuple(each for each in self._links if each is not link)
        link.receiver.close()
        for key in [key for key, route in tuple(self._routes.items()) if route.link is link]:
            self._routes.pop(key, None)
            self._thread.abort(key)

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
                raise MessageError(f"it says {type(message).__name__}, which is not its turn to say")

    def _begin(self, link: FrontLink, request: Request) -> None:
        key = _key(link, request.request_id)
        try:
            number = number_of(request.request_id)
        except ValueError:
            raise MessageError("it sends a request without a number") from None
        if key in self._routes:
            raise MessageError("it sends one request twice")
        self._routes[key] = _Route(link, number, request.num_sequences)
        link.receiver.receive(replace(request, request_id=key, trace=link.marked(request.trace)))

    async def _carry_out(self, link: FrontLink, call: Call) -> None:
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._executor, self._result_of, call.command)
        # Whoever gets the answer knows already what has changed.
        self._tell_all(self._news.changed(time.monotonic(), everything=True))
        link.channel.send(frame_of(Answer(call.number, result)))

    def _result_of(self, data: bytes) -> bytes:
        """On a thread of its own."""
        try:
            command = decode(data)
            if not isinstance(command, Command):
                raise MessageError(f"{type(command).__name__} is no command")
            return encode(carry_out(self._handlers, command))
        except ExpertMeshError as error:
            return encode(Failure.of(error))
        except Exception:
            logger.exception("a command failed")
            return encode(Failure.of(EngineError("a command failed; the log says why")))

    # What fronts are told.

    def _publish(self, outputs: Sequence[Output]) -> None:
        """On the engine's thread after each step; on the loop for requests that cannot be taken."""
        said = {link: Said() for link in self._links}
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is None or route.link not in said:
                continue
            said[route.link].add(route.number, output)
            if output.is_last:
                route.num_open -= 1
                if not route.num_open or output.failure is not None:
                    self._routes.pop(output.request_id, None)
        for link, each in said.items():
            slow = link.say(each)
            if slow:
                self._end_slow(link, slow)

    def _trace(self, step: TracedStep) -> None:
        """On the engine's thread, before the step's outputs."""
        for link in self._links:
            link.trace(step)

    def _end_slow(self, link: FrontLink, numbers: list[int]) -> None:
        """The front hears of it when it reads again."""
        failure = Failure.of(SlowConsumerError("more output waits to be read than one request may hold"))
        for key, route in tuple(self._routes.items()):
            if route.link is link and route.number in numbers:
                self._thread.abort(key)
                self._publish([Output(key, failure=failure)])

    def _stopped(self, error: EngineError) -> None:
        """On the engine's thread: it has lost track of its requests."""
        failure = Failure.of(error)
        self._publish([Output(key, failure=failure) for key in tuple(self._routes)])

    async def _tell_news(self) -> None:
        """Until it is closed, soon after something has changed."""
        while not self._closed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), TICK)
            try:
                self._tell_all([*self._news.changed(time.monotonic()), _BEAT])
            except Exception:
                logger.exception("the engine's news cannot be told")

    def _tell_all(self, frames: list[bytes]) -> None:
        for link in self._links:
            link.tell(frames)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(link: FrontLink, request_id: str) -> str:
    """The engine's key of a front's request."""
    return f"{request_id}@{link.number}"
