"""Stop: what the signals that end a server ask for."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

from moe_model.halt import Halt


class Stop:
    """SIGTERM, SIGINT, SIGHUP: the first asks to drain, or ends a start; the second to hurry.

    `is_terminal`: the first was Ctrl-C, so a person waits for the prompt, and no balancer has to hear of it.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.halt = Halt()
        self.is_terminal = False
        self._loop = asyncio.get_running_loop()

    def hear(self, number: signal.Signals) -> None:
        """On any thread."""
        self.halt.set()
        self._loop.call_soon_threadsafe(self._note, number)

    def _note(self, number: signal.Signals) -> None:
        if self.first.is_set():
            self.second.set()
        else:
            self.is_terminal = number is signal.SIGINT
            self.first.set()

    async def or_second(self, work: Coroutine[Any, Any, object]) -> None:
        """Returns when the work is done; it is cancelled when the second signal comes first."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self.second.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
