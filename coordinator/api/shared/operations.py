"""Operations: what a running server tells and lets do to itself. Knows no transport."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.validation.violations import REQUEST_ID
from coordinator.engine.client.base import EngineClient
from coordinator.engine.messages.commands import (
    AddExpert,
    Changed,
    Command,
    ExpertView,
    ListExperts,
    RemoveExpert,
    ReplaceExpert,
    ScaleWorkers,
)
from coordinator.engine.messages.errors import ExchangeError, NoCommandError
from expert_workers.status import Scaled, WorkerState, WorkerStatus
from expertmesh.shown_text import printable

R = TypeVar("R")

# As many as can run, and some that have just ended.
MAX_ABORTS = 4096
MAX_WORKERS = 1024
# Seconds, for a caller without a deadline.
SCALE_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What does not change while a server runs."""

    version: str
    instance_id: str
    models: tuple[str, ...]
    kv_capacity_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """`kv_usage` is the part of the KV cache in use, in [0, 1]."""

    num_running: int
    num_waiting: int
    kv_usage: float
    kv_capacity_tokens: int


@dataclass(frozen=True, slots=True)
class Operations:
    """A running server from its operator's side."""

    facts: ServerFacts
    engine: EngineClient

    @property
    def num_workers(self) -> int:
        """As many as there shall be at the moment."""
        return sum(worker.state is not WorkerState.DRAINING for worker in self.engine.workers().workers)

    async def topology(self) -> Sequence[WorkerStatus]:
        """The expert workers, by rank."""
        return (await self.engine.current_workers()).workers

    def load(self) -> Load:
        stats = self.engine.stats()
        return Load(stats.num_running, stats.num_waiting, stats.kv_usage, self.facts.kv_capacity_tokens)

    def scale(self, num_workers: int, timeout: float | None = None) -> Scaled:
        """Blocks until there are so many, `timeout` seconds at most. Raises ApiError, ExpertMeshError."""
        if not 1 <= num_workers <= MAX_WORKERS:
            message = f"{num_workers} is not in [1, {MAX_WORKERS}]"
            raise ApiError.of(Reason.INVALID_FIELD, message, field="num_workers")
        return self.engine.call(ScaleWorkers(num_workers, SCALE_TIMEOUT if timeout is None else timeout))

    def list_experts(self) -> Sequence[ExpertView]:
        """By layer, expert and version. Raises ApiError."""
        return self._call(ListExperts()).experts

    def replace_expert(self, layer: int, expert: int, path: str, sha256: str | None) -> Changed:
        """Blocks until new requests use it. Raises ApiError; so do the next two."""
        return self._call(ReplaceExpert(layer, expert, path, sha256))

    def add_expert(self, layer: int, path: str, sha256: str | None, router_path: str) -> Changed:
        return self._call(AddExpert(layer, path, sha256, router_path))

    def remove_expert(self, layer: int, expert: int) -> Changed:
        return self._call(RemoveExpert(layer, expert))

    def _call(self, command: Command[R]) -> R:
        """An operator is told what is wrong with a file, by the name that the operator gave."""
        try:
            return self.engine.call(command)
        except NoCommandError:
            raise ApiError.of(
                Reason.UNSUPPORTED_FEATURE, "this server's experts cannot be exchanged"
            ) from None
        except ExchangeError as error:
            shown = printable(str(error))
            reason = Reason.EXPERTS_NOT_CHANGED if error.field is None else Reason.INVALID_FIELD
            raise ApiError.of(reason, shown, field=error.field) from None

    async def abort(self, request_ids: Sequence[str], *, everything: bool) -> tuple[list[str], list[str]]:
        """Ends requests of any front; returns those that ran and those that did not. Raises ApiError,
        EngineLostError."""
        if everything == bool(request_ids):
            raise ApiError.of(Reason.INVALID_FIELD, "either this or all is required", field="request_ids")
        if len(request_ids) > MAX_ABORTS:
            message = f"{len(request_ids)} ids are more than {MAX_ABORTS}"
            raise ApiError.of(Reason.INVALID_FIELD, message, field="request_ids")
        for index, request_id in enumerate(request_ids):
            if not REQUEST_ID.fullmatch(request_id):
                message = "is not 1 to 128 of the characters A-Z a-z 0-9 . _ : -"
                raise ApiError.of(Reason.INVALID_FIELD, message, field=f"request_ids[{index}]")
        if everything:
            return await self.engine.abort(), []
        wanted = list(dict.fromkeys(request_ids))
        ended = set(await self.engine.abort(wanted))
        return [each for each in wanted if each in ended], [each for each in wanted if each not in ended]
