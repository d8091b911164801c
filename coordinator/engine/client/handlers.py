"""Who carries out an engine's commands, by their type. All of it runs beside the engine's steps."""

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from typing import Any, TypeVar, cast

from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import (
    AddExpert,
    CheckIntegrity,
    Command,
    Done,
    ExpertList,
    ListExperts,
    RemoveExpert,
    ReplaceExpert,
)
from coordinator.engine.messages.errors import IntegrityError, NoCommandError
from coordinator.engine.versions.exchange import ExpertExchange
from moe_model.errors import HaltedError

R = TypeVar("R")

Handlers = Mapping[type[Command[Any]], Callable[[Any], object]]


def engine_handlers(thread: EngineThread) -> Handlers:
    """What every engine can do."""

    def check_integrity(_: CheckIntegrity) -> Done:
        try:
            thread.call(Engine.check_integrity).result()
        except AssertionError as error:
            raise IntegrityError(str(error)) from None
        except CancelledError:
            raise HaltedError("the engine has been closed") from None
        return Done()

    return {CheckIntegrity: check_integrity}


def carry_out(handlers: Handlers, command: Command[R]) -> R:
    """Raises what the command raises; NoCommandError for one that no handler is of."""
    handler = handlers.get(type(command))
    if handler is None:
        raise NoCommandError(f"this engine has no command {type(command).__name__}")
    return cast(R, handler(command))


def exchange_handlers(exchange: ExpertExchange) -> Handlers:
    """What an engine whose experts can be exchanged can do besides."""
    return {
        ListExperts: lambda command: ExpertList(exchange.list()),
        ReplaceExpert: lambda command: exchange.replace(
            command.layer, command.expert, command.path, command.sha256
        ),
        AddExpert: lambda command: exchange.add(
            command.layer, command.path, command.sha256, command.router_path
        ),
        RemoveExpert: lambda command: exchange.remove(command.layer, command.expert),
    }
