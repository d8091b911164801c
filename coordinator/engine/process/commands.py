"""Commands: what operators ask of an engine, carried out beside its steps and its fronts' messages."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from coordinator.engine.client.handlers import Handlers, carry_out
from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.errors import EngineError, MessageError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.process import Call
from moe_model.errors import ExpertMeshError

logger = logging.getLogger(__name__)

# So many are carried out at a time; more wait.
MAX_COMMANDS = 16


class Commands:
    """Each on a thread of its own: some load experts or wait for workers."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._executor = ThreadPoolExecutor(MAX_COMMANDS, "command")

    async def result_of(self, call: Call) -> bytes:
        """The result or the Failure, encoded."""
        try:
            command = decode(call.command)
            if not isinstance(command, Command):
                raise MessageError(f"{type(command).__name__} is no command")
        except MessageError as error:
            return encode(Failure.of(error))
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._carry_out, command)

    def close(self) -> None:
        """Those that wait are not carried out any more; those under way end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, command: Command[Any]) -> bytes:
        try:
            return encode(carry_out(self._handlers, command))
        except ExpertMeshError as error:
            return encode(Failure.of(error))
        except Exception:
            logger.exception("a command failed")
            return encode(Failure.of(EngineError("a command failed; the log says why")))
