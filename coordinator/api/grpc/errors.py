"""ApiError -> gRPC status with google.rpc details. Bounded, for grpc replaces a status that is too large."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Self

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from coordinator.api.shared.errors import ApiError, Code, Quota, Reason, Resource, Violation
from coordinator.api.shared.request_ids import id_headers
from coordinator.api.validation.violations import MAX_VIOLATIONS

DOMAIN = "expertmesh"
DETAILS_KEY = "grpc-status-details-bin"
MAX_DETAILS_BYTES = 4096
MAX_MESSAGE = 500
MAX_DESCRIPTION = 200
MAX_FIELD = 100
_TYPE_URL = "type.googleapis.com/"


def status_code(error: ApiError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code.name]


def status_metadata(
    error: ApiError, request_id: str, given_ids: Mapping[str, str]
) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a failed call."""
    ids = id_headers(request_id, given_ids)
    return (*ids.items(), (DETAILS_KEY, status_details(error, request_id)))


def status_details(error: ApiError, request_id: str) -> bytes:
    """A serialised google.rpc.Status; violations are left out from the end until it fits."""
    own: Message = status_pb2.Status(details=[_packed(error_details_pb2.RequestInfo(request_id=request_id))])
    # Messages one after the other are one with the fields of both.
    data = _common(_Told.of(error), MAX_DETAILS_BYTES - own.ByteSize()) + own.SerializeToString()
    assert len(data) <= MAX_DETAILS_BYTES, f"status details of {len(data)} bytes"
    return data


@dataclass(frozen=True, slots=True)
class _Told:
    """What callers are told of an error. Not the error, which has frames with whole requests behind it."""

    code: Code
    reason: Reason
    message: str
    metadata: tuple[tuple[str, str], ...]
    violations: tuple[Violation, ...]
    retry_after: float | None
    resource: Resource | None
    quota: Quota | None

    @classmethod
    def of(cls, error: ApiError) -> Self:
        return cls(
            error.code,
            error.reason,
            error.message,
            tuple(error.metadata.items()),
            error.violations,
            error.retry_after,
            error.resource,
            error.quota,
        )


@lru_cache(maxsize=64)
def _common(error: _Told, max_bytes: int) -> bytes:
    """What is the same for all requests with this error: under overload nearly all get one."""
    for num_violations in range(min(len(error.violations), MAX_VIOLATIONS), -1, -1):
        status: Message = status_pb2.Status(
            code=grpc.StatusCode[error.code.name].value[0],
            message=error.message[:MAX_MESSAGE],
            details=[_packed(detail) for detail in _details(error, num_violations)],
        )
        if status.ByteSize() <= max_bytes:
            break
    return status.SerializeToString()


def _details(error: _Told, num_violations: int) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata))
    ]
    if num_violations:
        details.append(_bad_request(error, num_violations))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=error.retry_after)))
    if error.resource is not None:
        resource = error.resource
        details.append(
            error_details_pb2.ResourceInfo(resource_type=resource.kind, resource_name=resource.name)
        )
    if error.quota is not None:
        details.append(_quota_failure(error.quota))
    if error.code is Code.FAILED_PRECONDITION:
        details.append(_precondition_failure(error))
    return details


def _bad_request(error: _Told, num_violations: int) -> Message:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field=violation.field[:MAX_FIELD], description=violation.description[:MAX_DESCRIPTION]
        )
        for violation in error.violations[:num_violations]
    ]
    detail: Message = error_details_pb2.BadRequest(field_violations=violations)
    return detail


def _quota_failure(quota: Quota) -> Message:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=quota.subject, description=quota.description[:MAX_DESCRIPTION]
    )
    detail: Message = error_details_pb2.QuotaFailure(violations=[violation])
    return detail


def _precondition_failure(error: _Told) -> Message:
    violation = error_details_pb2.PreconditionFailure.Violation(
        type=error.reason, subject="model", description=error.message[:MAX_DESCRIPTION]
    )
    detail: Message = error_details_pb2.PreconditionFailure(violations=[violation])
    return detail


def _packed(detail: Message) -> any_pb2.Any:
    return any_pb2.Any(type_url=_TYPE_URL + detail.DESCRIPTOR.full_name, value=detail.SerializeToString())
