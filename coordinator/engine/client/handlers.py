"""Who carries out an engine's commands, by their type. All of it runs beside the engine's steps."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import (
    AddExpert,
    CheckIntegrity,
    Command,
    Done,
    ExpertList,
    ListExperts,
    ReadWorkers,
    RemoveExpert,
    ReplaceExpert,
    ScaleWorkers,
)
from coordinator.engine.messages.errors import IntegrityError, NoCommandError
from coordinator.engine.messages.metrics import MetricsSnapshot, ReadMetrics
from coordinator.engine.messages.stats import ModelStatus, WorkersStatus
from coordinator.engine.telemetry.traces import StepTraces
from coordinator.engine.versions.exchange import ExpertExchange
from expert_workers.status import Scaled, WorkerStatus
from moe_model.errors import HaltedError
from moe_model.versions.expert_versions import ExpertModule

R = TypeVar("R")

Handlers = Mapping[type[Command[Any]], Callable[[Any], object]]


def engine_handlers(thread: EngineThread) -> Handlers:
    """What every engine can do; one of a server counts besides."""

    def check_integrity(_: CheckIntegrity) -> Done:
        try:
            thread.call(Engine.check_integrity).result()
        except AssertionError as error:
            raise IntegrityError(str(error)) from None
        except CancelledError:
            raise HaltedError("the engine has been closed") from None
        return Done()

    return {CheckIntegrity: check_integrity, ReadMetrics: lambda _: MetricsSnapshot()}


def carry_out(handlers: Handlers, command: Command[R]) -> R:
    """Raises what the command raises; NoCommandError for one that no handler is of."""
    handler = handlers.get(type(command))
    if handler is None:
        raise NoCommandError(f"this engine has no command {type(command).__name__}")
    return cast(R, handler(command))


class OperatedExperts(Protocol):
    """What is read and changed of experts that may be on workers."""

    @property
    def num_replicas(self) -> int: ...
    @property
    def certificate_end(self) -> float | None: ...
    def topology(self) -> Sequence[WorkerStatus]: ...
    def missing_experts(self) -> Sequence[ExpertModule]: ...
    def scale(self, num_workers: int, timeout: float) -> Scaled: ...


@dataclass(frozen=True, slots=True)
class Operated:
    """What an engine's side does and tells besides requests. `handlers` carry out the commands that not every
    engine has."""

    handlers: Handlers = field(default_factory=dict)
    model: Callable[[], ModelStatus] = lambda: ModelStatus(())
    workers: Callable[[], WorkersStatus] = WorkersStatus
    missing: Callable[[], Sequence[ExpertModule]] = tuple
    traces: StepTraces = field(default_factory=StepTraces)

    @classmethod
    def of(
        cls,
        exchange: ExpertExchange,
        experts: OperatedExperts,
        counts: Callable[[], MetricsSnapshot] = MetricsSnapshot,
        traces: StepTraces | None = None,
    ) -> "Operated":
        """Of an engine of `exchange` over `experts`, which `counts` and `traces` observe."""
        told: Handlers = {ReadMetrics: lambda _: counts()}
        handlers = {**exchange_handlers(exchange), **worker_handlers(experts), **told}
        workers = partial(workers_status, experts)
        return cls(handlers, exchange.status, workers, experts.missing_experts, traces or StepTraces())


def workers_status(experts: OperatedExperts) -> WorkersStatus:
    return WorkersStatus(
        tuple(experts.topology()),
        tuple(experts.missing_experts()),
        experts.num_replicas,
        experts.certificate_end,
    )


def worker_handlers(experts: OperatedExperts) -> Handlers:
    """What an engine can do whose experts may be on workers."""
    return {
        ReadWorkers: lambda _: workers_status(experts),
        ScaleWorkers: lambda command: experts.scale(command.num_workers, command.timeout),
    }


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
