"""Which fields of a GenerateRequest are built. All others are refused when present, neutral or not.

A list of what is supported, never of what is not: a field added to the .proto is refused until it works.
"""

from collections.abc import Iterator

from google.protobuf.message import Message

from coordinator.api.errors import ApiError, Reason, Violation
from protos.expertmesh.v1.generation_pb2 import GenerateRequest

SUPPORTED = frozenset(
    {
        "request_id",
        "model",
        "prompt.text",
        "prompt.token_ids",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.top_k",
        "sampling.min_p",
        "sampling.seed",
        "stopping.max_tokens",
        "stopping.min_tokens",
        "stopping.stop_token_ids",
        "stopping.ignore_eos",
        "stopping.context_overflow",
        "response.return_text",
        "response.return_token_ids",
    }
)
# Messages whose fields are looked at one by one.
_GROUPS = frozenset({"sampling", "stopping", "response"})


def check_supported(message: GenerateRequest) -> None:
    """Raises UNSUPPORTED_FEATURE naming every field present that is not built."""
    fields = sorted(path for path in _present(message, "") if path not in SUPPORTED)
    if fields:
        description = "is not supported by this server"
        violations = tuple(Violation(field, description) for field in fields)
        raise ApiError.of(Reason.UNSUPPORTED_FEATURE, f"{fields[0]}: {description}", violations=violations)


def _present(message: Message, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        oneof = field.containing_oneof
        # A proto3 optional lives in a oneof of its own, which is no part of the path.
        inside = f"{oneof.name}." if oneof is not None and len(oneof.fields) > 1 else ""
        path = f"{prefix}{inside}{field.name}"
        if path in _GROUPS:
            yield from _present(value, f"{path}.")
        else:
            yield path
