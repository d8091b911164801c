"""EngineClient: an engine as its callers see it. Plain data goes in and comes out, wherever it runs."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol, TypeVar

from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.metrics import MetricsSnapshot
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from moe_model.versions.expert_versions import ExpertModule

R = TypeVar("R")

# Stands between a request's id and the number of one of its prompts; no caller's id has one.
PART = "/"
# Seconds, for a request that nothing but its end or its caller ends.
NO_LIMIT = 1e9


class RequestEngine(Protocol):
    """What answers requests. Closing a stream before its end ends the request."""

    def stream(self, request: Request, max_seconds: float) -> AsyncGenerator[Output, None]:
        """Yields the request's outputs; the last has a finish reason. Raises the request's error, as an
        ExpertMeshError.

        A reader that lags gets several steps merged into one output.
        Raises DuplicateRequestError, EngineClosedError; RequestExpiredError `max_seconds` from now, after
        what was there by then; SlowConsumerError for a reader that lags too far. Of an engine in another
        process: EngineLostError when that has died, EngineBusyError when it takes nothing.
        """


class EngineClient(RequestEngine, Protocol):
    """An engine, in this process or in another. Streams, `abort` and `close` belong to one event loop; the
    rest may be called from any thread."""

    def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]: ...

    @property
    def request_ids(self) -> list[str]:
        """The requests whose streams are open."""

    async def abort(self, request_ids: Sequence[str] | None = None) -> list[str]:
        """Ends requests of all the engine's fronts with FinishReason.ABORT, each with all its prompts; None:
        all there are. Returns those that ran. Raises EngineLostError."""

    def stats(self) -> EngineStats:
        """The state after the last step; never waits. `stopped`: every stream has ended, and none begins
        before it is started again."""

    def model(self) -> ModelStatus:
        """What the model consists of now; never waits."""

    def workers(self) -> WorkersStatus:
        """The expert workers as they are now, or were a second ago; never waits."""

    async def current_workers(self) -> WorkersStatus:
        """As `workers`, not older than the question; what was last known where the engine does not answer
        within a second. Raises nothing."""

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        """`workers().missing` without the rest, which is much of a large model: for looks that come often."""

    async def counts(self) -> MetricsSnapshot:
        """What it has counted for metrics; what was last known where it does not answer within a second.
        Raises nothing."""

    def follow(self, told: Callable[[TracedStep], None]) -> None:
        """`told` hears of each step of requests that have a `trace`, before their outputs do, on any thread;
        it must be quick and must not raise. A front that lags misses some."""

    def call(self, command: Command[R]) -> R:
        """Blocks until the command is carried out. Raises what it raises, all of them ExpertMeshErrors;
        NoCommandError for one that this engine does not have, HaltedError when it ends first, EngineLostError
        when it dies."""

    async def close(self, timeout: float = 10.0) -> bool:
        """Ends every stream with EngineClosedError, and the engine where it is this client's alone; False
        when a step outlasts `timeout`."""
