"""ApiError, and the one table from what can go wrong to what a client is told.

Rows carry the gRPC and the HTTP column; this module imports neither library. Texts never hold prompts,
paths or tracebacks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict, Unpack

from coordinator.engine.messages.errors import (
    CapacityError,
    ConstraintError,
    DuplicateRequestError,
    EngineBusyError,
    EngineClosedError,
    EngineLostError,
    NoTokenLeftError,
    SlowConsumerError,
    StepMemoryError,
    UnknownExpertError,
)
from moe_model.errors import (
    BoundWorkersError,
    BusyError,
    ClusterError,
    ExpertMeshError,
    ExpertsLostError,
    FencedError,
    HaltedError,
    NoProcessError,
    NoWorkersError,
    ReplyError,
    WorkerStartError,
)


class Code(StrEnum):
    """gRPC status codes, by name."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """What happened; stable, for programs to branch on."""

    INVALID_FIELD = "INVALID_FIELD"
    TOKEN_ID_OUT_OF_RANGE = "TOKEN_ID_OUT_OF_RANGE"  # noqa: S105
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    INVALID_CONSTRAINT = "INVALID_CONSTRAINT"
    UNSUPPORTED_FEATURE = "UNSUPPORTED_FEATURE"
    NO_CHAT_TEMPLATE = "NO_CHAT_TEMPLATE"
    NO_TOKENIZER = "NO_TOKENIZER"
    KV_CAPACITY_TOO_SMALL = "KV_CAPACITY_TOO_SMALL"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    DUPLICATE_REQUEST_ID = "DUPLICATE_REQUEST_ID"
    MISSING_API_KEY = "MISSING_API_KEY"
    INVALID_API_KEY = "INVALID_API_KEY"
    NOT_ALLOWED = "NOT_ALLOWED"
    QUEUE_FULL = "QUEUE_FULL"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    UNSUPPORTED_ENCODING = "UNSUPPORTED_ENCODING"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    NO_PROCESS = "NO_PROCESS"
    ENGINE_LOST = "ENGINE_LOST"
    EXPERT_WORKER_LOST = "EXPERT_WORKER_LOST"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    EXPERTS_NOT_CHANGED = "EXPERTS_NOT_CHANGED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Row:
    """What both fronts say for one reason. `retry_after` is in seconds.

    `should_retry` is for OpenAI's clients, which otherwise send again after any 409, 429 and 5xx.
    """

    code: Code
    http_status: int
    http_type: str
    http_code: str
    retry_after: float | None = None
    should_retry: bool | None = None


_BAD_REQUEST = "invalid_request_error"

_SERVER, _RATE = "server_error", "rate_limit_error"

TABLE: Mapping[Reason, Row] = {
    Reason.INVALID_FIELD: Row(Code.INVALID_ARGUMENT, 400, _BAD_REQUEST, "invalid_value"),
    Reason.TOKEN_ID_OUT_OF_RANGE: Row(Code.INVALID_ARGUMENT, 400, _BAD_REQUEST, "invalid_value"),
    Reason.CONTEXT_LENGTH_EXCEEDED: Row(Code.INVALID_ARGUMENT, 400, _BAD_REQUEST, "context_length_exceeded"),
    Reason.INVALID_CONSTRAINT: Row(Code.INVALID_ARGUMENT, 400, _BAD_REQUEST, "invalid_value"),
    Reason.UNSUPPORTED_FEATURE: Row(Code.UNIMPLEMENTED, 400, _BAD_REQUEST, "unsupported_parameter"),
    Reason.NO_CHAT_TEMPLATE: Row(Code.FAILED_PRECONDITION, 400, _BAD_REQUEST, "no_chat_template"),
    Reason.NO_TOKENIZER: Row(Code.FAILED_PRECONDITION, 400, _BAD_REQUEST, "no_tokenizer"),
    Reason.KV_CAPACITY_TOO_SMALL: Row(Code.FAILED_PRECONDITION, 400, _BAD_REQUEST, "context_length_exceeded"),
    Reason.EXPERTS_NOT_CHANGED: Row(Code.FAILED_PRECONDITION, 400, _BAD_REQUEST, "experts_not_changed"),
    Reason.MODEL_NOT_FOUND: Row(Code.NOT_FOUND, 404, _BAD_REQUEST, "model_not_found"),
    Reason.DUPLICATE_REQUEST_ID: Row(
        Code.ALREADY_EXISTS, 409, _BAD_REQUEST, "duplicate_request_id", should_retry=False
    ),
    Reason.MISSING_API_KEY: Row(Code.UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key"),
    Reason.INVALID_API_KEY: Row(Code.UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key"),
    Reason.NOT_ALLOWED: Row(Code.PERMISSION_DENIED, 403, "permission_error", "not_allowed"),
    Reason.QUEUE_FULL: Row(Code.RESOURCE_EXHAUSTED, 429, _RATE, "queue_full", retry_after=1.0),
    Reason.QUOTA_EXCEEDED: Row(Code.RESOURCE_EXHAUSTED, 429, _RATE, "quota_exceeded", retry_after=1.0),
    Reason.SLOW_CONSUMER: Row(Code.RESOURCE_EXHAUSTED, 503, _SERVER, "slow_consumer", should_retry=False),
    Reason.REQUEST_TOO_LARGE: Row(Code.RESOURCE_EXHAUSTED, 413, _BAD_REQUEST, "request_too_large"),
    Reason.UNSUPPORTED_ENCODING: Row(Code.UNIMPLEMENTED, 415, _BAD_REQUEST, "unsupported_encoding"),
    Reason.NOT_READY: Row(Code.UNAVAILABLE, 503, _SERVER, "not_ready", retry_after=1.0),
    Reason.DRAINING: Row(Code.UNAVAILABLE, 503, _SERVER, "not_ready", retry_after=1.0),
    Reason.NO_PROCESS: Row(Code.UNAVAILABLE, 503, _SERVER, "no_process", retry_after=1.0),
    Reason.ENGINE_LOST: Row(Code.UNAVAILABLE, 503, _SERVER, "engine_lost", retry_after=2.0),
    Reason.EXPERT_WORKER_LOST: Row(Code.UNAVAILABLE, 503, _SERVER, "expert_worker_lost", retry_after=5.0),
    Reason.OUT_OF_MEMORY: Row(Code.RESOURCE_EXHAUSTED, 503, _SERVER, "out_of_memory"),
    Reason.DEADLINE_EXCEEDED: Row(Code.DEADLINE_EXCEEDED, 504, _SERVER, "timeout", should_retry=False),
    Reason.INTERNAL: Row(Code.INTERNAL, 500, _SERVER, "internal", should_retry=False),
}

# Exceptions of the layers below. What is not here is a bug: INTERNAL.
_EXCEPTIONS: tuple[tuple[type[BaseException], Reason, str], ...] = (
    (DuplicateRequestError, Reason.DUPLICATE_REQUEST_ID, "request_id: already running"),
    (ConstraintError, Reason.INVALID_CONSTRAINT, "the constraint cannot be followed by this model's tokens"),
    (
        NoTokenLeftError,
        Reason.INVALID_FIELD,
        "allowed_token_ids, bad_words and the constraint leave no token to draw",
    ),
    (
        UnknownExpertError,
        Reason.INVALID_FIELD,
        "experts: leaves no expert in some layer, for one has just been retired",
    ),
    (
        BoundWorkersError,
        Reason.UNSUPPORTED_FEATURE,
        "this server's workers follow its machines (--workers-per-node): let machines join or leave",
    ),
    (NoWorkersError, Reason.UNSUPPORTED_FEATURE, "this server's experts run in the coordinator"),
    (BusyError, Reason.QUEUE_FULL, "the server is busy with what other requests have to be prepared for"),
    (NoProcessError, Reason.NO_PROCESS, "no process can be started for what this request needs"),
    (CapacityError, Reason.KV_CAPACITY_TOO_SMALL, "the request does not fit the server's KV cache"),
    (EngineBusyError, Reason.QUEUE_FULL, "the engine has not taken yet what was sent to it before"),
    (EngineLostError, Reason.ENGINE_LOST, "the server's engine has died, and is started again"),
    (EngineClosedError, Reason.DRAINING, "the server is shutting down"),
    (HaltedError, Reason.DRAINING, "the server is shutting down"),
    (SlowConsumerError, Reason.SLOW_CONSUMER, "more output waits to be read than one request may hold"),
    (StepMemoryError, Reason.OUT_OF_MEMORY, "not enough memory for this request"),
    (
        ExpertsLostError,
        Reason.EXPERT_WORKER_LOST,
        "experts of this model were lost and not recovered in time",
    ),
    (ReplyError, Reason.EXPERT_WORKER_LOST, "an expert worker gave no usable reply"),
    (ClusterError, Reason.EXPERT_WORKER_LOST, "the expert workers cannot be reached"),
    (FencedError, Reason.EXPERT_WORKER_LOST, "another coordinator has taken over the expert workers"),
    (WorkerStartError, Reason.EXPERT_WORKER_LOST, "an expert worker could not be restarted"),
    (MemoryError, Reason.OUT_OF_MEMORY, "not enough memory for this request"),
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with one field."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What was not found or exists already."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Quota:
    """Which limit was reached, and whose it is."""

    subject: str
    description: str


class ErrorDetails(TypedDict, total=False):
    """What an ApiError may carry besides its reason and message."""

    metadata: Mapping[str, str] | None
    retry_after: float | None
    violations: tuple[Violation, ...]
    resource: Resource | None
    quota: Quota | None


class ApiError(ExpertMeshError):
    """A request ends with this. `violations` name the fields at fault, the first of them in the message."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: tuple[Violation, ...] = (),
        resource: Resource | None = None,
        quota: Quota | None = None,
    ) -> None:
        super().__init__(message)
        self.row = TABLE[reason]
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = self.row.retry_after if retry_after is None else retry_after
        self.violations = violations
        self.resource = resource
        self.quota = quota

    @classmethod
    def of(
        cls, reason: Reason, message: str, *, field: str | None = None, **details: Unpack[ErrorDetails]
    ) -> "ApiError":
        """The error of one row of the table; with a field, that is the one at fault."""
        if field is not None:
            details["violations"] = (Violation(field, message),)
            message = f"{field}: {message}"
        return cls(reason, message, **details)

    @property
    def code(self) -> Code:
        return self.row.code

    @property
    def field(self) -> str | None:
        return self.violations[0].field if self.violations else None


def translate(error: BaseException, request_id: str) -> ApiError:
    """The table's answer to any exception. The exception's own text stays on the server."""
    if isinstance(error, ApiError):
        return error
    for kind, reason, message in _EXCEPTIONS:
        if isinstance(error, kind):
            return ApiError.of(
                reason, message, metadata=_metadata_of(error), resource=_resource(reason, request_id)
            )
    return ApiError.of(Reason.INTERNAL, f"internal error, request {request_id}")


def duplicate_request_id(request_id: str) -> ApiError:
    return ApiError.of(
        Reason.DUPLICATE_REQUEST_ID,
        f"request_id: {request_id} is already running",
        resource=Resource("request", request_id),
    )


def _metadata_of(error: BaseException) -> dict[str, str]:
    if isinstance(error, ExpertsLostError) and error.ranks:
        return {"rank": ",".join(map(str, error.ranks))}
    return {}


def _resource(reason: Reason, request_id: str) -> Resource | None:
    return Resource("request", request_id) if reason is Reason.DUPLICATE_REQUEST_ID else None
