"""Status details by row, and their bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.api.grpc.errors import MAX_DETAILS_BYTES, status_code, status_details
from coordinator.api.shared.errors import TABLE, ApiError, Quota, Reason, Resource, Violation
from tests.coordinator.api.fakes import unpack


@pytest.mark.parametrize("reason", list(Reason))
def test_every_row_has_its_details(reason: Reason) -> None:
    details = unpack(status_details(ApiError.of(reason, "what happened"), "id-1"))
    assert details["ErrorInfo"].reason == reason
    assert details["ErrorInfo"].domain == "expertmesh"
    assert details["RequestInfo"].request_id == "id-1"
    code = TABLE[reason].code.name
    assert status_code(ApiError.of(reason, "")).name == code
    assert ("RetryInfo" in details) == (TABLE[reason].retry_after is not None)
    assert ("PreconditionFailure" in details) == (code == "FAILED_PRECONDITION")


def test_violations_resource_and_metadata_come_along() -> None:
    error = ApiError.of(
        Reason.CONTEXT_LENGTH_EXCEEDED,
        "too long",
        field="prompt.text",
        metadata={"prompt_tokens": "9"},
        resource=Resource("request", "id"),
    )
    details = unpack(status_details(error, "id"))
    (violation,) = details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("prompt.text", "too long")
    assert details["ErrorInfo"].metadata == {"prompt_tokens": "9"}
    assert details["ResourceInfo"].resource_type == "request"


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    found = tuple(Violation(f"{index}" + "🙂" * 300, "🙂" * 500) for index in range(20))
    data = status_details(ApiError.of(Reason.INVALID_FIELD, "🙂" * 5000, violations=found), "i" * 128)
    assert len(data) <= MAX_DETAILS_BYTES
    named = unpack(data)["BadRequest"].field_violations
    assert named
    assert [violation.field[0] for violation in named] == [str(index) for index in range(len(named))]


violations = st.lists(st.builds(Violation, st.text(max_size=300), st.text(max_size=500)), max_size=40)


@settings(deadline=None)
@given(violations, st.text(max_size=5000))
def test_details_stay_bounded(found: list[Violation], message: str) -> None:
    error = ApiError.of(Reason.INVALID_FIELD, message, violations=tuple(found))
    data = status_details(error, "i" * 128)
    assert len(data) <= MAX_DETAILS_BYTES
    named = unpack(data).get("BadRequest")
    if named:
        assert 1 <= len(named.field_violations) <= 16
        assert all(len(violation.description) <= 200 for violation in named.field_violations)


FULL = Quota("requests", "4 of 4")


def test_errors_that_say_the_same_differ_in_their_request_only() -> None:
    same = [ApiError.of(Reason.QUEUE_FULL, "full", quota=FULL) for _ in range(2)]
    first, second = (unpack(status_details(error, name)) for error, name in zip(same, "ab", strict=True))
    assert (first.pop("RequestInfo").request_id, second.pop("RequestInfo").request_id) == ("a", "b")
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        ApiError.of(Reason.QUEUE_FULL, "fuller", quota=Quota("requests", "4 of 4")),
        ApiError.of(Reason.QUOTA_EXCEEDED, "full", quota=Quota("requests", "4 of 4")),
        ApiError.of(Reason.QUEUE_FULL, "full", quota=Quota("requests", "5 of 5")),
        ApiError.of(Reason.QUEUE_FULL, "full", quota=Quota("requests", "4 of 4"), retry_after=9.0),
        ApiError.of(Reason.QUEUE_FULL, "full", quota=Quota("requests", "4 of 4"), metadata={"a": "b"}),
        ApiError.of(
            Reason.QUEUE_FULL, "full", quota=Quota("requests", "4 of 4"), resource=Resource("a", "b")
        ),
        ApiError.of(Reason.QUEUE_FULL, "full", quota=Quota("requests", "4 of 4"), field="a"),
    ],
)
def test_another_error_is_told_as_another(other: ApiError) -> None:
    error = ApiError.of(Reason.QUEUE_FULL, "full", quota=FULL)
    assert status_details(error, "a") != status_details(other, "a")
    assert status_details(error, "a") == status_details(error, "a")
