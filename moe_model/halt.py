"""Halt: says to what waits, or takes long, that it shall end instead of going on."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from typing import Any, TypeVar

from moe_model.errors import HaltedError

T = TypeVar("T")


class Halt:
    """Any thread may call it. Once set, it stays so."""

    def __init__(self) -> None:
        self._said: Future[None] = Future()

    @property
    def is_set(self) -> bool:
        return self._said.done()

    def set(self) -> None:
        """Idempotent, and it never waits for those who are told."""
        with suppress(InvalidStateError):
            self._said.set_result(None)

    def check(self) -> None:
        """Raises HaltedError when it is set."""
        if self.is_set:
            raise HaltedError("it is being stopped")

    def then(self, tell: Callable[[], object]) -> None:
        """`tell` is called when it is set, by who sets it; at once, if it is set already."""
        self._said.add_done_callback(lambda _: tell())

    def wait(self, seconds: float) -> None:
        """Lets so much time pass. Raises HaltedError as soon as it is set."""
        with suppress(TimeoutError):
            self.result(Future[None](), seconds)

    def result(self, future: "Future[T]", timeout: float) -> T:
        """What a future has come to. Raises HaltedError when this is set first, TimeoutError after `timeout`
        seconds, and what the future raises."""
        either: list[Future[Any]] = [future, self._said]
        wait(either, timeout, FIRST_COMPLETED)
        if future.done():
            return future.result()
        self.check()
        raise TimeoutError

    async def unless_set(self, work: "Coroutine[Any, Any, T]") -> T:
        """What it returns or raises; it is cancelled, and HaltedError raised, when this is set first."""
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def cancel() -> None:
            # A loop that was closed meanwhile has no task left.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

        self.then(cancel)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if task.cancelled():
            self.check()
        return task.result()
