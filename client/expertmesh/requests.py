"""What a client asks, from plain values to messages. Values are checked by the server."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from expertmesh.errors import ClientError
from expertmesh.results import GenerateOptions, Prompt
from expertmesh.v1 import generation_pb2 as pb

OVERFLOWS = {"stop": pb.CONTEXT_OVERFLOW_STOP, "slide": pb.CONTEXT_OVERFLOW_SLIDE}
# Where each option stands in the request.
_GROUPS: Mapping[str, type[Message]] = {
    "sampling": pb.SamplingParams,
    "stopping": pb.StoppingParams,
    "response": pb.ResponseOptions,
    "constraint": pb.OutputConstraint,
    "experts": pb.ExpertSelection,
}
_GROUP_OF = {field.name: group for group, kind in _GROUPS.items() for field in kind.DESCRIPTOR.fields}
_OF_CHATS = ("add_generation_prompt", "continue_final_message", "template_kwargs")


def generate_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Raises ClientError for a value that the message cannot hold; the server checks all others."""
    request = pb.GenerateRequest()
    _put_prompt(request, prompt)
    for name, value in options.items():
        group = _GROUP_OF.get(name)
        field = f"{group}.{name}" if group else name
        match name:
            case "context_overflow":
                value = OVERFLOWS.get(str(value), value)
            case "choices":
                request.constraint.choice.SetInParent()
                _put(request.constraint.choice, "choices", value, "constraint.choice.choices")
                continue
            case "json_object":
                if value:
                    request.constraint.json_object.SetInParent()
                continue
            case "time_limit":
                _put_seconds(request, value)
                continue
            case name if name in _OF_CHATS:
                _put_of_chat(request, name, value)
                continue
        target = getattr(request, group) if group else request
        _put(target, name, value, field)
    return request


def _put_prompt(request: pb.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _put(request, "text", prompt, "prompt.text")
    elif prompt and all(isinstance(each, Mapping) for each in prompt):
        for index, each in enumerate(prompt):
            message = request.chat.messages.add()
            for name, value in dict(each).items() if isinstance(each, Mapping) else ():
                _put(message, name, value, f"prompt.chat.messages[{index}].{name}")
    else:
        request.token_ids.SetInParent()
        _put(request.token_ids, "ids", prompt, "prompt.token_ids")


def _put_of_chat(request: pb.GenerateRequest, name: str, value: Any) -> None:
    """Only where the prompt is a conversation: it must not take the place of another one."""
    field = f"prompt.chat.{name}"
    if request.WhichOneof("prompt") != "chat":
        raise ClientError(
            "INVALID_ARGUMENT", f"{field}: needs messages as the prompt", "INVALID_FIELD", field
        )
    _put(request.chat, name, json.dumps(value) if isinstance(value, Mapping) else value, field)


def _put_seconds(request: pb.GenerateRequest, seconds: object) -> None:
    try:
        request.stopping.time_limit.FromNanoseconds(round(float(seconds) * 1e9))  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        text = f"stopping.time_limit: {str(seconds)[:80]!r} is not a value of this field"
        raise ClientError("INVALID_ARGUMENT", text, "INVALID_FIELD", "stopping.time_limit") from None


def tokenize_request(text: str, add_special_tokens: bool) -> pb.TokenizeRequest:
    """Raises ClientError."""
    request = pb.TokenizeRequest(add_special_tokens=add_special_tokens)
    _put(request, "text", text, "text")
    return request


def detokenize_request(token_ids: Sequence[int], skip_special_tokens: bool) -> pb.DetokenizeRequest:
    """Raises ClientError."""
    request = pb.DetokenizeRequest(skip_special_tokens=skip_special_tokens)
    _put(request, "token_ids", token_ids, "token_ids")
    return request


def _put(message: Message, name: str, value: Any, field: str) -> None:
    try:
        if isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (ValueError, TypeError, AttributeError):
        # protobuf's own text has several lines and names nothing.
        text = f"{field}: {str(value)[:80]!r} is not a value of this field"
        raise ClientError("INVALID_ARGUMENT", text, "INVALID_FIELD", field) from None
