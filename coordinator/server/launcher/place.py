"""Place: where one process of a server runs, and the next one when that has died."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.server.environment import for_processes
from coordinator.server.launcher.child import Child
from coordinator.server.launcher.deaths import RestartPolicy
from coordinator.server.launcher.messages import Failed, Message, Stop
from moe_model.errors import WorldError

logger = logging.getLogger(__name__)


class LostError(WorldError):
    """A process is gone for good, which the server cannot do without."""


@dataclass(slots=True)
class Place:
    """Belongs to one event loop.

    `greet` has what each process there is told first, whether or not it is the first; `hear` gets what they
    say; `on_death` is called when one has ended, also where none is to follow.
    """

    name: str
    module: str
    folder: Path
    greet: Callable[[bool], Iterable[Message]]
    hear: Callable[[Message], None]
    on_death: Callable[[], None] = lambda: None
    arguments: tuple[str, ...] = ()
    # Whether another takes the place of one that dies.
    is_refilled: bool = True
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    child: Child | None = None
    # Whether the process serves, and whether any has.
    is_serving: bool = False
    has_served: bool = False
    _has_begun: bool = False
    _failure: str | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _keeping: asyncio.Task[None] | None = None

    def begin(self, lost: Callable[[str], None]) -> None:
        """Starts the process, and another when it has died, until `end`. `lost` is told why none takes its
        place."""
        self._keeping = asyncio.ensure_future(self._keep(lost))

    def serves(self) -> None:
        """The process has said so."""
        self.is_serving = self.has_served = True

    def tell(self, message: Message) -> None:
        """Its process, if there is one."""
        if self.child is not None:
            self.child.tell(message)

    def retire(self) -> None:
        """No other process takes the place of this one."""
        self._over.set()

    async def end(self, seconds: float) -> None:
        """Tells its process to stop, waits until it has ended, and kills it when it has not by then; at once
        where it only loads its libraries, and would not hear of it before."""
        self.retire()
        self.tell(Stop())
        if self.child is not None and not self._has_begun:
            self.child.kill()
        if self._keeping is None:
            return
        await asyncio.wait([self._keeping], timeout=seconds)
        if self.child is not None:
            logger.error("the %s (pid %d) does not end: it is killed", self.name, self.child.pid)
            self.child.kill()
        await self._keeping

    async def _keep(self, lost: Callable[[str], None]) -> None:
        is_again = False
        try:
            while not self._over.is_set():
                why = await self._one(is_again)
                if not self._over.is_set():
                    await self._wait_after(why)
                is_again = True
        except LostError as error:
            lost(str(error))
        except OSError as error:
            lost(f"the {self.name} cannot be started: {error.strerror}")

    async def _one(self, is_again: bool) -> str:
        """From its start to its end: why it ended, with its name."""
        self._failure, self.is_serving, self._has_begun = None, False, False
        child = await Child.start(
            self.name, self.module, self.folder, for_processes(), self._heard, *self.arguments
        )
        self.child = child
        for message in self.greet(is_again):
            child.tell(message)
        if self._over.is_set():
            child.kill()
        why = await child.ended()
        self.child = None
        self.on_death()
        if self._failure is not None:
            return self._failure
        return f"the {self.name} (pid {child.pid}) has died: {why or 'it has ended by itself'}"

    async def _wait_after(self, why: str) -> None:
        """Until the next may start. Raises LostError when there is none."""
        if not self.has_served:
            raise LostError(why if self._failure else f"{why}, while it started")
        # What fails while it serves has said that another would fare no better.
        if not self.is_refilled or (self._failure and self.is_serving):
            raise LostError(why)
        self.is_serving = False
        wait = self.policy.died(time.monotonic())
        if wait is None:
            raise LostError(f"{why}; {self.policy.most} times in {self.policy.window:g} s are too often")
        logger.error("%s; it is started again%s", why, f" in {wait:g} s" if wait else "")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), wait)

    def _heard(self, message: Message) -> None:
        self._has_begun = True
        if isinstance(message, Failed):
            self._failure = message.why
        self.hear(message)
