"""The launcher: starts the processes of a server, says when it can serve, and sees to their ends.

    launcher -- engine -- front, front, ... -- and, with workers and no Ray but ours, who keeps that

It computes nothing and holds no connection of a caller, so what makes the others fail leaves it alone.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from coordinator.config.serve import ServeConfig
from coordinator.metrics.ledger import release
from coordinator.server.launcher.messages import (
    Begin,
    Drain,
    Drained,
    EngineReady,
    Failed,
    FrontReady,
    Halt,
    Message,
    ModelKnown,
    Phase,
    Progress,
    RayReady,
    UseRay,
)
from coordinator.server.launcher.place import LostError, Place
from coordinator.server.phases import Phases

logger = logging.getLogger(__name__)

ENGINE, FRONT, RAY = (f"coordinator.server.{name}_process" for name in ("engine", "front", "ray"))
# Seconds for an end in order, before a process is killed: of an engine with its workers, of a front with its
# last answers, of Ray with all of its processes.
ENGINE_END, FRONT_END, RAY_END = 30.0, 15.0, 20.0


class Launcher:
    """Belongs to one event loop. `failed` has why the server must stop, if it must."""

    def __init__(self, config: ServeConfig, folder: Path, phases: Phases) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._config = config
        self._folder = folder
        self._instance_id = str(uuid4())
        self._phases = phases
        self._ray: UseRay | None = None
        self._model: ModelKnown | None = None
        self._max_context = 0
        self._engine_ready: EngineReady | None = None
        self._last_ready: EngineReady | None = None
        self._since = time.monotonic()
        self._changed = asyncio.Event()
        self._drained: set[str] = set()
        self.engine = Place(
            "engine", ENGINE, folder, self._greet_engine, self._hear_engine, self._engine_died
        )
        self.fronts = [self._front(number) for number in range(config.processes.num_fronts)]
        self.keeper = None
        if config.workers.needs_own_ray:
            self.keeper = Place(
                *("keeper of Ray", RAY, folder, lambda _: (), self._hear_ray),
                is_refilled=False,
            )

    async def start(self) -> EngineReady:
        """Starts all processes; returns when they can serve, and what the engine says of itself. Raises
        LostError with the reason when one of them cannot."""
        for place in self._places:
            place.begin(self._fail)
        while self._engine_ready is None or not all(front.has_served for front in self.fronts):
            await self._next_change()
            if self.failed.done():
                raise LostError(self.failed.result())
        return self._engine_ready

    @property
    def max_context(self) -> int:
        return self._max_context

    def halt(self) -> None:
        """Every change of experts or workers ends; requests go on."""
        self.engine.tell(Halt())

    async def drain(self, grace: float, timeout: float) -> None:
        """Waits until no front has a call, as each front's drain. None of the processes is started again."""
        for place in self._places:
            place.retire()
        self._drained.clear()
        self._tell_fronts(Drain(grace, timeout))
        try:
            async with asyncio.timeout(grace + timeout + FRONT_END):
                while any(front.child and front.name not in self._drained for front in self.fronts):
                    await self._next_change()
        except TimeoutError:
            logger.error("a front does not say that it has drained: it is not waited for")

    async def end(self) -> None:
        """Ends all processes: who uses another first."""
        await asyncio.gather(*(front.end(FRONT_END) for front in self.fronts))
        await self.engine.end(ENGINE_END)
        if self.keeper is not None:
            await self.keeper.end(RAY_END)

    @property
    def _places(self) -> Sequence[Place]:
        return [*([] if self.keeper is None else [self.keeper]), self.engine, *self.fronts]

    def _front(self, number: int) -> Place:
        name = "front" if self._config.processes.num_fronts == 1 else f"front {number}"
        return Place(
            name,
            FRONT,
            self._folder,
            partial(self._greet_front, number),
            partial(self._hear_front, number),
            partial(self._front_died, number),
        )

    def _greet_engine(self, is_again: bool) -> Iterator[Message]:
        # The environment's key is for fronts. Workers that run are used again; if another coordinator has
        # taken them meanwhile, they are its own.
        workers = self._config.workers
        if is_again:
            workers = replace(workers, replace_workers=False, take_over=False)
        yield Begin(replace(self._config, api_key=None, workers=workers), self._folder, is_again=is_again)
        if self._ray is not None:
            yield self._ray

    def _greet_front(self, number: int, is_again: bool) -> Iterator[Message]:
        yield Begin(self._config, self._folder, self._instance_id, number, is_again)
        if self._model is not None:
            yield self._model
        if self._engine_ready is not None:
            yield self._engine_ready

    def _hear_engine(self, message: Message) -> None:
        match message:
            case Phase(name) if not self.engine.has_served:
                self._phases(name)
            case Progress(done, total) if not self.engine.has_served:
                self._phases.progress(done, total)
            case ModelKnown():
                # A model of the hub is looked for once: it may have moved on there.
                self._config = replace(self._config, checkpoint=message.checkpoint)
                self._model = message
                self._tell_fronts(message)
            case EngineReady():
                self._engine_is_ready(message)
            case Failed(why) if self.engine.is_serving:
                self._fail(why)
        self._changed.set()

    def _engine_is_ready(self, message: EngineReady) -> None:
        before, self._last_ready, self._engine_ready = self._last_ready, message, message
        if self.engine.has_served:
            logger.info("the engine serves again after %.2f s", time.monotonic() - self._since)
        if before is not None and before.kv_capacity_tokens != message.kv_capacity_tokens:
            held = (before.kv_capacity_tokens, message.kv_capacity_tokens)
            logger.warning("a request can have %d tokens in the cache of before, %d in this one", *held)
        self.engine.serves()
        self._tell_fronts(message)

    def _engine_died(self) -> None:
        # A front that starts now waits for the next one.
        self._since, self._engine_ready = time.monotonic(), None

    def _hear_front(self, number: int, message: Message) -> None:
        front = self.fronts[number]
        match message:
            case FrontReady(max_context):
                front.serves()
                self._max_context = max_context
            case Drained():
                self._drained.add(front.name)
        self._changed.set()

    def _front_died(self, number: int) -> None:
        # Its requests hold no place any more, though none may come in its stead for a while.
        with suppress(OSError):
            release(self._folder, number)
        self._changed.set()

    def _hear_ray(self, message: Message) -> None:
        match message:
            case RayReady(address, environment):
                assert self.keeper is not None
                self.keeper.serves()
                self._ray = UseRay(address, environment)
                self.engine.tell(self._ray)

    def _tell_fronts(self, message: Message) -> None:
        for front in self.fronts:
            front.tell(message)

    def _fail(self, why: str) -> None:
        if not self.failed.done():
            self.failed.set_result(why)
        self._changed.set()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
