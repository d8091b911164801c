"""The table, and that nothing of an exception's own text gets past it."""

import pytest

from coordinator.api.shared.errors import TABLE, ApiError, Code, Reason, translate
from coordinator.engine.messages.errors import (
    CapacityError,
    DuplicateRequestError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineLostError,
    SlowConsumerError,
    StepMemoryError,
    UnknownExpertError,
)
from moe_model.errors import (
    BusyError,
    CheckpointError,
    ClusterError,
    ConfigError,
    ExpertsLostError,
    HaltedError,
    NoProcessError,
    NumericError,
    ReplyError,
    WorkerStartError,
)

SECRET = "/srv/models/secret prompt"


def test_every_reason_has_a_row() -> None:
    assert set(TABLE) == set(Reason)


def test_only_what_may_be_tried_again_says_when() -> None:
    retried = {reason for reason, row in TABLE.items() if row.retry_after is not None}
    unavailable = {reason for reason, row in TABLE.items() if row.code is Code.UNAVAILABLE}
    assert retried == unavailable | {Reason.QUEUE_FULL, Reason.QUOTA_EXCEEDED}
    assert all(TABLE[reason].http_status in (429, 503) for reason in retried)


def test_clients_that_send_again_are_told_when_it_is_of_no_use() -> None:
    told = {reason for reason, row in TABLE.items() if row.should_retry is False}
    assert {TABLE[reason].http_status for reason in told} == {409, 500, 503, 504}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DuplicateRequestError(SECRET), Reason.DUPLICATE_REQUEST_ID),
        (CapacityError(SECRET), Reason.KV_CAPACITY_TOO_SMALL),
        (EngineClosedError(SECRET), Reason.DRAINING),
        (EngineBusyError(SECRET), Reason.QUEUE_FULL),
        (EngineLostError(SECRET), Reason.ENGINE_LOST),
        (NoProcessError(SECRET), Reason.NO_PROCESS),
        (BusyError(SECRET), Reason.QUEUE_FULL),
        (HaltedError(SECRET), Reason.DRAINING),
        (UnknownExpertError(SECRET), Reason.INVALID_FIELD),
        (ExpertsLostError(SECRET), Reason.EXPERT_WORKER_LOST),
        (ReplyError(SECRET), Reason.EXPERT_WORKER_LOST),
        (ClusterError(SECRET), Reason.EXPERT_WORKER_LOST),
        (WorkerStartError(SECRET), Reason.EXPERT_WORKER_LOST),
        (MemoryError(SECRET), Reason.OUT_OF_MEMORY),
        (StepMemoryError(SECRET), Reason.OUT_OF_MEMORY),
        (SlowConsumerError(SECRET), Reason.SLOW_CONSUMER),
        (EngineError(SECRET), Reason.INTERNAL),
        (NumericError(SECRET), Reason.INTERNAL),
        (ConfigError(SECRET), Reason.INTERNAL),
        (CheckpointError(SECRET), Reason.INTERNAL),
        (ValueError(SECRET), Reason.INTERNAL),
        (AssertionError(SECRET), Reason.INTERNAL),
    ],
)
def test_translates_exceptions(error: BaseException, reason: Reason) -> None:
    translated = translate(error, "id-1")
    assert translated.reason is reason
    assert translated.code is TABLE[reason].code
    assert "secret" not in f"{translated.message} {translated.metadata}"


def test_internal_errors_say_only_which_request() -> None:
    assert translate(KeyError("x"), "id-1").message == "internal error, request id-1"


def test_lost_experts_name_the_ranks() -> None:
    assert translate(ExpertsLostError("gone", ranks=(2, 5)), "id").metadata == {"rank": "2,5"}


def test_an_api_error_passes_as_it_is() -> None:
    error = ApiError.of(Reason.MODEL_NOT_FOUND, "no", field="model", metadata={"a": "b"}, retry_after=1.5)
    assert translate(error, "id") is error
    assert (error.field, error.metadata, error.retry_after) == ("model", {"a": "b"}, 1.5)
