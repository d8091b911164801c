"""Requests in text format, resolved or refused."""

import pytest
from google.protobuf import text_format

from coordinator.api.shared.errors import ApiError
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.request import ValidRequest, resolve
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import served_model


def resolved(text: str, model: ServedModel | None = None) -> ValidRequest:
    """`text` is the request in text format; the prompt defaults to one token."""
    message = text_format.Parse(text, pb.GenerateRequest())
    if message.WhichOneof("prompt") is None:
        message.token_ids.ids.append(5)
    return resolve(message, model or served_model(), "id", 12.5)


def refused(text: str, model: ServedModel | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        resolved(text, model)
    return caught.value


def ids(count: int, token_id: int = 5) -> str:
    return "token_ids { " + f"ids: {token_id} " * count + "}"
