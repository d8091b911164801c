"""POST /v1/chat/completions: its parameters, and the shape of its choices."""

import json
from collections.abc import Sequence
from typing import Any

from coordinator.api.http.answer import Asked, StreamOptions, Wants
from coordinator.api.http.json import Body, checked_text, invalid, unsupported
from coordinator.api.http.parameters import Names, fill_request
from coordinator.api.http.shapes import chat_logprobs, finish, prompt_details, routed_experts
from coordinator.api.http.tools import fill_tools, fill_turn, shown_delta, shown_turn, thinking_variables
from expertmesh.v1 import generation_pb2 as pb

ROLES = {"developer": "system", "function": "tool"}
_OF_TEMPLATES = (
    *("add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    *("tools", "functions"),
)
_OF_EVERY_MESSAGE = frozenset({"role", "content"})
# Of other servers' messages; what is empty says nothing.
_NOT_IN_MESSAGES = {
    "refusal": "put it into the content",
    "annotations": "leave them out",
    "audio": "this model reads and writes text only",
    "images": "this model reads and writes text only",
    "prefix": "use continue_final_message",
}
# Of a part of a message; hints to caches say nothing about the answer.
_OF_PARTS = frozenset({"type", "text", "annotations", "cache_control", "prompt_cache_breakpoint"})


def parse(body: Body, streaming: StreamOptions) -> Asked:
    """Raises ApiError naming the parameter."""
    message = pb.GenerateRequest()
    constraint = fill_request(body, message)
    messages = body.array("messages")
    if messages is None:
        raise invalid("messages", "is required")
    fill_chat(messages, message.chat)
    fill_template(body, message.chat)
    is_old = fill_tools(body, message.chat)
    max_tokens, limit = body.integer("max_completion_tokens"), "max_completion_tokens"
    other = body.integer("max_tokens")
    if max_tokens is not None and other not in (None, max_tokens):
        raise invalid("max_tokens", "differs from max_completion_tokens")
    if max_tokens is None:
        max_tokens, limit = other, "max_tokens"
    if max_tokens is not None:
        message.stopping.max_tokens = max_tokens
    logprobs = _logprobs(body)
    if logprobs is not None:
        message.response.logprobs = logprobs
    token_ids = bool(body.boolean("return_token_ids"))
    message.response.return_prompt_token_ids = token_ids
    wants = Wants(
        logprobs=logprobs,
        token_ids=token_ids,
        prompt_logprobs=message.response.HasField("prompt_logprobs"),
        old_functions=is_old,
    )
    names = Names(is_chat=True, constraint=constraint, max_tokens=limit)
    return Asked([message], message.sampling.num_sequences or 1, streaming, wants, names)


class ChatShape:
    """Choices of a chat completion."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, wants: Wants) -> None:
        self._wants = wants

    def choice(
        self, index: int, prompt: int, output: pb.SequenceOutput, info: pb.PromptInfo
    ) -> dict[str, Any]:
        match = output.stop_match if output.HasField("stop_match") else None
        choice = {
            "index": index,
            "message": shown_turn(output, is_old=self._wants.old_functions),
            "logprobs": self._logprobs(list(output.logprobs)),
            **finish(output.finish_reason, match, is_old=self._wants.old_functions),
            **prompt_details(self._wants, info),
        }
        if self._wants.token_ids:
            choice["token_ids"] = list(output.token_ids)
        if output.HasField("routed_experts"):
            choice["routed_experts"] = routed_experts(output.routed_experts)
        return choice

    def first(self, index: int, prompt: int, info: pb.PromptInfo) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        details = prompt_details(self._wants, info)
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **details}

    def delta(self, index: int, delta: pb.SequenceDelta) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": shown_delta(delta, is_old=self._wants.old_functions),
            "logprobs": self._logprobs(list(delta.logprobs)),
            "finish_reason": None,
        }
        if self._wants.token_ids:
            choice["token_ids"] = list(delta.token_ids)
        if delta.HasField("routed_experts"):
            choice["routed_experts"] = routed_experts(delta.routed_experts)
        return choice

    def finished(self, index: int, finished: pb.SequenceFinished) -> dict[str, Any]:
        match = finished.stop_match if finished.HasField("stop_match") else None
        ended = finish(finished.finish_reason, match, is_old=self._wants.old_functions)
        return {"index": index, "delta": {}, "logprobs": None, **ended}

    def _logprobs(self, logprobs: list[pb.TokenLogprob]) -> dict[str, Any] | None:
        return None if self._wants.logprobs is None else chat_logprobs(logprobs)


def _logprobs(body: Body) -> int | None:
    wanted, top = body.boolean("logprobs"), body.integer("top_logprobs")
    if top and not wanted:
        raise invalid("top_logprobs", "needs logprobs to be true")
    return (top or 0) if wanted else None


def fill_chat(messages: Sequence[object], chat: pb.ChatPrompt) -> None:
    """Raises ApiError naming the message at fault; roles and numbers are checked later."""
    chat.SetInParent()
    for index, each in enumerate(messages):
        path = f"messages[{index}]"
        if not isinstance(each, dict):
            raise invalid(path, "is not an object")
        turn = Body(each, f"{path}.")
        role = turn.text("role")
        if role is None:
            raise invalid(f"{path}.role", "is required")
        content = _content(turn.raw("content"), f"{path}.content")
        message = chat.messages.add(role=ROLES.get(role, role), content=content)
        if not each.keys() <= _OF_EVERY_MESSAGE:
            fill_turn(turn, message)
            _refuse_others(turn)


def fill_template(body: Body, chat: pb.ChatPrompt) -> None:
    """What the template is told beside the messages. Raises ApiError naming the parameter."""
    for name in ("add_generation_prompt", "continue_final_message"):
        value = body.boolean(name)
        if value is not None:
            setattr(chat, name, value)
    variables = thinking_variables(body) | (body.mapping("chat_template_kwargs") or {})
    if variables:
        chat.template_kwargs = json.dumps(variables)


def refuse_template(body: Body) -> None:
    """Where there is a prompt, which no template renders. Raises ApiError naming the parameter."""
    for name in _OF_TEMPLATES:
        if body.raw(name):
            raise invalid(name, "needs messages")


def _refuse_others(turn: Body) -> None:
    turn.refuse(_NOT_IN_MESSAGES)
    turn.raw("cache_control")
    turn.refuse_others()


def _content(value: object, path: str) -> str:
    """A text, or parts of type text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return checked_text(value, path)
    if not isinstance(value, list):
        raise invalid(path, "is neither a string nor an array of parts")
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type") != "text":
            raise unsupported(f"{path}[{index}]", "is not a part of type text, the only kind there is")
        if not part.keys() <= _OF_PARTS:
            inner = Body(part, f"{path}[{index}].")
            for name in _OF_PARTS:
                inner.raw(name)
            inner.refuse_others()
        texts.append(checked_text(part["text"], f"{path}[{index}].text"))
    return "".join(texts)
