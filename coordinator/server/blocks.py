"""Blocks that take their time, entered and left on other threads than the event loop's."""

import asyncio
from contextlib import AbstractContextManager, AsyncExitStack
from typing import TypeVar

T = TypeVar("T")


async def entered(opened: AbstractContextManager[T], stack: AsyncExitStack) -> T:
    """Enters a block on another thread; it ends with the stack."""
    entered = await asyncio.to_thread(opened.__enter__)
    stack.push_async_callback(asyncio.to_thread, opened.__exit__, None, None, None)
    return entered
