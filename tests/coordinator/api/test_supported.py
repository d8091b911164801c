"""Every field of the .proto is either built or refused; a new one cannot be ignored silently."""

import math
from typing import Any

import pytest
from google.protobuf.message import Message

from coordinator.api.errors import ApiError, Code, Reason
from coordinator.api.supported import SUPPORTED, check_supported
from coordinator.api.validation import resolve
from protos.expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import served_model

GROUPS = ("sampling", "stopping", "response")


def all_fields() -> dict[str, tuple[str | None, Any]]:
    """Path -> (group or None, field) of every field a caller can set."""
    paths: dict[str, tuple[str | None, Any]] = {}
    descriptor: Any = pb.GenerateRequest.DESCRIPTOR
    for field in descriptor.fields:
        if field.name in GROUPS:
            for inner in field.message_type.fields:
                paths[f"{field.name}.{inner.name}"] = (field.name, inner)
        elif field.name in ("text", "token_ids", "chat"):
            paths[f"prompt.{field.name}"] = (None, field)
        else:
            paths[field.name] = (None, field)
    return paths


FIELDS = all_fields()
NOT_BUILT = sorted(set(FIELDS) - SUPPORTED)


def set_neutral(request: pb.GenerateRequest, path: str) -> None:
    """Sets a field to the least that makes it present: 0, false, an empty message, one empty element."""
    group, field = FIELDS[path]
    target: Any = getattr(request, group) if group else request
    value = getattr(target, field.name)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value[0] = 0.0
        else:
            value.append("" if field.type == field.TYPE_STRING else 0)
    elif isinstance(value, Message):
        value.SetInParent()
    else:
        setattr(target, field.name, field.default_value)


def test_the_supported_fields_exist() -> None:
    assert set(FIELDS) >= SUPPORTED
    assert len(FIELDS) - len(NOT_BUILT) == 16


def test_what_this_server_is_known_not_to_build() -> None:
    assert (
        sorted(
            [
                *("add_special_tokens", "constraint", "experts", "prompt.chat", "truncate_prompt_tokens"),
                *(f"response.{name}" for name in ("logprobs", "min_tokens_per_message", "prompt_logprobs")),
                *(f"response.return_{name}" for name in ("prompt_token_ids", "routed_experts")),
                "response.skip_special_tokens",
                *(f"sampling.{name}_penalty" for name in ("frequency", "presence", "repetition")),
                *("sampling.logit_bias", "sampling.num_sequences"),
                *("stopping.include_stop_in_output", "stopping.stop_sequences", "stopping.time_limit"),
            ]
        )
        == NOT_BUILT
    )


@pytest.mark.parametrize("path", NOT_BUILT)
def test_refuses_a_field_that_is_not_built_even_when_neutral(path: str) -> None:
    request = pb.GenerateRequest(text="x") if path != "prompt.chat" else pb.GenerateRequest()
    set_neutral(request, path)
    with pytest.raises(ApiError) as caught:
        resolve(request, served_model(), "id", 0.0)
    assert (caught.value.code, caught.value.reason) == (Code.UNIMPLEMENTED, Reason.UNSUPPORTED_FEATURE)
    assert caught.value.field == path
    assert caught.value.message.startswith(f"{path}: ")


@pytest.mark.parametrize("path", sorted(SUPPORTED))
def test_takes_every_field_that_is_built(path: str) -> None:
    request = pb.GenerateRequest() if path == "prompt.token_ids" else pb.GenerateRequest(text="x")
    set_neutral(request, path)
    check_supported(request)


def test_names_every_field_that_is_not_built() -> None:
    request = pb.GenerateRequest(text="x", add_special_tokens=True)
    request.sampling.presence_penalty = 0.0
    with pytest.raises(ApiError) as caught:
        check_supported(request)
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["add_special_tokens", "sampling.presence_penalty"]


def test_an_invalid_value_wins_over_an_unsupported_field() -> None:
    request = pb.GenerateRequest(text="x")
    request.sampling.presence_penalty = 1.0
    request.sampling.top_p = math.nan
    with pytest.raises(ApiError) as caught:
        resolve(request, served_model(), "id", 0.0)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, "sampling.top_p")


def test_an_unsupported_field_wins_over_a_prompt_that_is_too_long() -> None:
    request = pb.GenerateRequest(text="x" * 1000, truncate_prompt_tokens=5)
    with pytest.raises(ApiError) as caught:
        resolve(request, served_model(), "id", 0.0)
    assert caught.value.field == "truncate_prompt_tokens"
