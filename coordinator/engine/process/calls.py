"""Calls: the commands of a front that the engine has not answered yet."""

import itertools
from concurrent.futures import Future
from typing import Any

from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.process import Answer, Call
from moe_model.errors import ExpertMeshError


class Calls:
    """By number. Any thread may begin one; one loop answers and ends them."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._open: dict[int, Future[object]] = {}

    def begin(self, command: Command[Any]) -> tuple[Call, "Future[object]"]:
        """What to send, and what will have the command's result, or raise its error."""
        call, result = Call(next(self._numbers), encode(command)), Future[object]()
        self._open[call.number] = result
        # One that is not waited for any longer, or has its answer, expects none.
        result.add_done_callback(lambda _: self._open.pop(call.number, None))
        return call, result

    def answer(self, answer: Answer) -> None:
        """An answer that no call waits for any longer is dropped. Raises MessageError."""
        result, found = self._open.get(answer.number), decode(answer.result)
        if result is None or not result.set_running_or_notify_cancel():
            return
        if isinstance(found, Failure):
            result.set_exception(found.error())
        else:
            result.set_result(found)

    def end(self, error: ExpertMeshError) -> None:
        """All that wait raise the error."""
        for result in tuple(self._open.values()):
            if result.set_running_or_notify_cancel():
                result.set_exception(error)
