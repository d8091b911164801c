"""StallGuard: many short waits of one task, none of which may take longer than so many seconds.

`asyncio.timeout` around each would make, sort and throw away a timer per message.
"""

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class StallGuard:
    """Used by the task that enters it, one wait at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._expired = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Raises TimeoutError when it takes too long; it is cancelled then."""
        num_cancels = self._task.cancelling()
        self._since = self._loop.time()
        try:
            result = await awaitable
        except asyncio.CancelledError:
            if self._was_ours() and self._task.uncancel() <= num_cancels:
                raise TimeoutError from None
            raise
        finally:
            self._since = None
        if self._was_ours():
            # It came in spite of the cancel.
            self._task.uncancel()
        return result

    def _was_ours(self) -> bool:
        """Whether the timer has cancelled the task; it looks again from now on."""
        expired, self._expired = self._expired, False
        if expired:
            self._timer = self._loop.call_later(self._seconds, self._look)
        return expired

    def _look(self) -> None:
        """As often as a wait may last, and at the end of one that is under way."""
        now = self._loop.time()
        left = self._seconds if self._since is None else self._since + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._expired = True
            self._task.cancel()
