"""POST /v1/completions: its parameters, and the shape of its choices."""

from typing import Any

from coordinator.api.http.answer import Asked, StreamOptions, Wants
from coordinator.api.http.json import Body, checked_text, integers, invalid
from coordinator.api.http.parameters import Names, fill_request
from coordinator.api.http.shapes import (
    completion_logprobs,
    finish,
    prompt_details,
    routed_experts,
)
from coordinator.api.shared.served_model import ServedModel
from expertmesh.v1 import generation_pb2 as pb

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 64


def parse(body: Body, served: ServedModel, streaming: StreamOptions) -> Asked:
    """Raises ApiError naming the parameter."""
    template = pb.GenerateRequest()
    constraint = fill_request(body, template)
    max_tokens = body.integer("max_tokens")
    template.stopping.max_tokens = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    logprobs, echo = body.integer("logprobs"), bool(body.boolean("echo"))
    if logprobs is not None:
        template.response.logprobs = logprobs
    asked_prompt_logprobs = template.response.HasField("prompt_logprobs")
    if echo and not asked_prompt_logprobs and (logprobs is not None or max_tokens == 0):
        template.response.prompt_logprobs = logprobs or 0
    messages = [_with_prompt(template, prompt) for prompt in _prompts(body)]
    wants = Wants(
        logprobs=logprobs,
        echo=echo,
        token_ids=bool(body.boolean("return_token_ids")),
        prompt_logprobs=asked_prompt_logprobs,
        prompt_text=lambda prompt: _text_of(messages[prompt], served),
    )
    if wants.token_ids:
        for message in messages:
            message.response.return_prompt_token_ids = True
    num_sequences = template.sampling.num_sequences or 1
    return Asked(messages, num_sequences, streaming, wants, Names(constraint=constraint))


class CompletionShape:
    """Choices of a text completion."""

    kind = "text_completion"
    chunk_kind = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, wants: Wants) -> None:
        self._wants = wants
        # Of a stream: where the text of each choice's next token begins.
        self._offsets: dict[int, int] = {}

    def choice(
        self, index: int, prompt: int, output: pb.SequenceOutput, info: pb.PromptInfo
    ) -> dict[str, Any]:
        echoed = self._wants.prompt_text(prompt) if self._wants.echo else ""
        match = output.stop_match if output.HasField("stop_match") else None
        choice = {
            "index": index,
            "text": echoed + output.text,
            "logprobs": self._logprobs([*self._echoed(info), *output.logprobs], index),
            **finish(output.finish_reason, match),
            **prompt_details(self._wants, info),
        }
        if self._wants.token_ids:
            choice["token_ids"] = list(output.token_ids)
        if output.HasField("routed_experts"):
            choice["routed_experts"] = routed_experts(output.routed_experts)
        return choice

    def first(self, index: int, prompt: int, info: pb.PromptInfo) -> dict[str, Any] | None:
        """What is told of the prompt, and with echo the prompt itself."""
        details = prompt_details(self._wants, info)
        if not self._wants.echo and not details:
            return None
        text = self._wants.prompt_text(prompt) if self._wants.echo else ""
        logprobs = self._logprobs(self._echoed(info), index)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None, **details}

    def delta(self, index: int, delta: pb.SequenceDelta) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(list(delta.logprobs), index),
            "finish_reason": None,
        }
        if self._wants.token_ids:
            choice["token_ids"] = list(delta.token_ids)
        if delta.HasField("routed_experts"):
            choice["routed_experts"] = routed_experts(delta.routed_experts)
        return choice

    def finished(self, index: int, finished: pb.SequenceFinished) -> dict[str, Any]:
        match = finished.stop_match if finished.HasField("stop_match") else None
        return {"index": index, "text": "", "logprobs": None, **finish(finished.finish_reason, match)}

    def _echoed(self, info: pb.PromptInfo) -> list[pb.TokenLogprob]:
        return list(info.logprobs) if self._wants.echo and self._wants.logprobs is not None else []

    def _logprobs(self, logprobs: list[pb.TokenLogprob], index: int) -> dict[str, Any] | None:
        if self._wants.logprobs is None:
            return None
        offset = self._offsets.get(index, 0)
        found = completion_logprobs(logprobs, offset)
        self._offsets[index] = offset + sum(map(len, found["tokens"]))
        return found


def _prompts(body: Body) -> list[str | list[int]]:
    """A text, a list of texts, token ids, or a list of lists of them."""
    value = body.raw("prompt")
    if isinstance(value, str):
        return [checked_text(value, "prompt")]
    if not isinstance(value, list) or not value:
        raise invalid("prompt", "is not a string, an array of strings, or arrays of token ids")
    if all(type(each) is int for each in value):
        return [integers(value, "prompt")]
    if len(value) > MAX_PROMPTS:
        raise invalid("prompt", f"{len(value)} prompts are more than {MAX_PROMPTS}")
    return [_prompt(each, index) for index, each in enumerate(value)]


def _prompt(value: object, index: int) -> str | list[int]:
    if isinstance(value, str):
        return checked_text(value, f"prompt[{index}]")
    if isinstance(value, list):
        return integers(value, f"prompt[{index}]")
    raise invalid(f"prompt[{index}]", "is neither a string nor an array of token ids")


def _with_prompt(template: pb.GenerateRequest, prompt: str | list[int]) -> pb.GenerateRequest:
    message = pb.GenerateRequest()
    message.CopyFrom(template)
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.token_ids.SetInParent()
        message.token_ids.ids.extend(prompt)
    return message


def _text_of(message: pb.GenerateRequest, served: ServedModel) -> str:
    """What echo repeats: the prompt as it was given, ids as their text; wrong ids are refused later."""
    if message.WhichOneof("prompt") == "text":
        return message.text
    if served.tokenizer is None:
        return ""
    return served.tokenizer.decode(message.token_ids.ids)
