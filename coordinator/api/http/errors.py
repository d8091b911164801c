"""ApiError -> what OpenAI's clients expect of a failed request."""

import json
from typing import Any

from starlette.responses import Response

from coordinator.api.http.inflate import ACCEPTED
from coordinator.api.http.parameters import NO_NAMES, Names, parameter_of
from coordinator.api.shared.errors import ApiError, Code, Reason


def error_body(error: ApiError, names: Names = NO_NAMES) -> dict[str, Any]:
    """`{"error": {...}}`. `param` is the caller's own word for the first field at fault."""
    param = None if error.field is None else parameter_of(error.field, names)
    row = error.row
    return {
        "error": {
            "message": _message(error, param),
            "type": row.http_type,
            "param": param,
            "code": row.http_code,
        }
    }


def error_response(error: ApiError, names: Names = NO_NAMES) -> Response:
    """With the headers that say whether and when it is of use to try again."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if error.row.should_retry is not None:
        headers["x-should-retry"] = "true" if error.row.should_retry else "false"
    if error.reason is Reason.UNSUPPORTED_ENCODING:
        headers["accept-encoding"] = ACCEPTED
    if error.code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    body = json.dumps(error_body(error, names))
    return Response(body, error.row.http_status, headers, media_type="application/json")


def plain_error(status: int, message: str, code: str) -> Response:
    """For what is no method of ours: an unknown path, a wrong verb."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return Response(json.dumps(body), status, media_type="application/json")


def _message(error: ApiError, param: str | None) -> str:
    message = error.message
    if error.field is not None and param is not None and message.startswith(f"{error.field}: "):
        message = f"{param}: {message[len(error.field) + 2 :]}"
    if error.reason is Reason.CONTEXT_LENGTH_EXCEEDED:
        # OpenAI's own beginning, which clients look for.
        context = error.metadata.get("max_context_length", "")
        message = f"This model's maximum context length is {context} tokens. {message}"
    return message
