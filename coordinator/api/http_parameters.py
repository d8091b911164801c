"""OpenAI's parameters, and ours beside them, as fields of a GenerateRequest. Values are checked there.

Only types, and what OpenAI has and we have not, are looked at here.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from coordinator.api.http_json import Body, checked_integer, checked_text, invalid, unsupported
from coordinator.api.validate_response import MAX_EXPERT_IDS
from coordinator.api.validate_sampling import MAX_BIASES
from coordinator.api.validate_stopping import MAX_STOP_SEQUENCES, MAX_STOP_TOKEN_IDS
from protos.expertmesh.v1 import generation_pb2 as pb

logger = logging.getLogger(__name__)

# Ours -> theirs, longest first where one begins another. What is not here is named as it is.
_NAMES = {
    "prompt.text": "prompt",
    "prompt.token_ids": "prompt",
    "prompt.chat.messages": "messages",
    "prompt.chat": "messages",
    "sampling.num_sequences": "n",
    "stopping.stop_sequences": "stop",
    "stopping.include_stop_in_output": "include_stop_str_in_output",
    "stopping.time_limit": "time_limit_ms",
    "response.return_routed_experts": "return_routed_experts",
    "constraint": "response_format",
}
_GROUPS = ("sampling.", "stopping.", "response.")

_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")

# What OpenAI has and we have not: only the values that change nothing.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
}
# OpenAI's that say nothing about the answer.
_IGNORED = frozenset(
    {"user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_retention", "verbosity", "stream", "stream_options", "best_of"}
)
MAX_LOGGED_NAMES, MAX_LOGGED_AT_ONCE = 256, 8


def parameter_of(field: str, *, is_chat: bool) -> str:
    """What a caller of this front calls a field of ours."""
    for ours, theirs in _NAMES.items():
        if field == ours or field.startswith((f"{ours}.", f"{ours}[")):
            return theirs + field[len(ours) :] if field.startswith(f"{ours}[") else theirs
    if is_chat and field == "response.logprobs":
        return "top_logprobs"
    for group in _GROUPS:
        field = field.removeprefix(group)
    return field


def fill_request(body: Body, message: pb.GenerateRequest) -> None:
    """All that completions and chat have in common. Raises ApiError naming the parameter."""
    _refuse_unknown_features(body)
    message.model = body.text("model") or ""
    _fill_sampling(body, message.sampling)
    _fill_stopping(body, message.stopping)
    _fill_response(body, message.response)
    _fill_constraint(body, message)
    _fill_experts(body, message)
    truncate = body.integer("truncate_prompt_tokens")
    if truncate is not None:
        message.truncate_prompt_tokens = truncate
    add_special = body.boolean("add_special_tokens")
    if add_special is not None:
        message.add_special_tokens = add_special


class UnknownFields:
    """Names a field that nobody knows in the log, once."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def of(self, body: Body) -> list[str]:
        """Those of a body whose fields have all been asked for."""
        return sorted(body.unread - _IGNORED)

    def seen(self, names: list[str]) -> None:
        for name in sorted(set(names) - self._names)[:MAX_LOGGED_AT_ONCE]:
            if len(self._names) >= MAX_LOGGED_NAMES:
                return
            self._names.add(name)
            logger.info("ignored the unknown field %s", ascii(name[:80]))


def _refuse_unknown_features(body: Body) -> None:
    for tools, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        has_tools, how = bool(body.raw(tools)), body.raw(choice)
        if has_tools and how != "none":
            raise unsupported(tools)
        if how not in (None, "none", "auto"):
            raise unsupported(choice)
    for name, neutral in _NEUTRAL.items():
        if body.raw(name) not in neutral:
            raise unsupported(name)
    best_of, n = body.integer("best_of"), body.integer("n")
    if best_of is not None and best_of != (1 if n is None else n):
        raise unsupported("best_of", "is only supported where it equals n")


def _fill_sampling(body: Body, sampling: pb.SamplingParams) -> None:
    for name in _NUMBERS:
        value = body.number(name)
        if value is not None:
            setattr(sampling, name, value)
    # vLLM's -1 is its older word for off.
    top_k = body.integer("top_k", least=-1)
    if top_k is not None:
        sampling.top_k = max(0, top_k)
    seed = body.integer("seed", least=-(1 << 63), most=(1 << 64) - 1)
    if seed is not None:
        sampling.seed = seed % (1 << 64)
    n = body.integer("n")
    if n is not None:
        sampling.num_sequences = n
    biases, path = body.mapping("logit_bias") or {}, "logit_bias"
    if len(biases) > MAX_BIASES:
        raise invalid(path, f"{len(biases)} entries are more than {MAX_BIASES}")
    for key, bias in biases.items():
        if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) >= 1 << 32:
            raise invalid(path, "has a key that is no token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or abs(bias) > 1e9:
            raise invalid(f"{path}[{int(key)}]", "is not a number in [-100, 100]")
        sampling.logit_bias[int(key)] = bias


def _fill_stopping(body: Body, stopping: pb.StoppingParams) -> None:
    min_tokens = body.integer("min_tokens")
    if min_tokens is not None:
        stopping.min_tokens = min_tokens
    stop = body.raw("stop")
    stops = [checked_text(stop, "stop")] if isinstance(stop, str) else body.texts("stop", MAX_STOP_SEQUENCES)
    stopping.stop_sequences.extend(stops or ())
    stopping.stop_token_ids.extend(body.integers("stop_token_ids", MAX_STOP_TOKEN_IDS) or ())
    for theirs, ours in (
        ("ignore_eos", "ignore_eos"),
        ("include_stop_str_in_output", "include_stop_in_output"),
    ):
        value = body.boolean(theirs)
        if value is not None:
            setattr(stopping, ours, value)
    milliseconds = body.integer("time_limit_ms")
    if milliseconds is not None:
        stopping.time_limit.FromMilliseconds(milliseconds)
    overflow = body.text("context_overflow")
    if overflow is not None:
        kinds = {"stop": pb.CONTEXT_OVERFLOW_STOP, "slide": pb.CONTEXT_OVERFLOW_SLIDE}
        if overflow not in kinds:
            raise invalid("context_overflow", "is not stop or slide")
        stopping.context_overflow = kinds[overflow]


def _fill_response(body: Body, response: pb.ResponseOptions) -> None:
    # Always returned: the shapes of choices are made from them.
    response.return_token_ids = True
    for name in ("skip_special_tokens", "return_routed_experts"):
        value = body.boolean(name)
        if value is not None:
            setattr(response, name, value)
    prompt_logprobs = body.integer("prompt_logprobs")
    if prompt_logprobs is not None:
        response.prompt_logprobs = prompt_logprobs


def _fill_constraint(body: Body, message: pb.GenerateRequest) -> None:
    """OpenAI's response_format; vLLM's structured_outputs and its older guided_*."""
    wanted: list[tuple[str, Any]] = []
    response_format = body.mapping("response_format")
    if response_format is not None:
        found = _of_response_format(Body(response_format, "response_format."))
        wanted += [] if found is None else [found]
    outputs = body.mapping("structured_outputs") or {}
    for kind in ("json", "regex", "choice", "grammar"):
        for value in (outputs.get(kind), body.raw(f"guided_{kind}")):
            if value is not None:
                wanted.append(("json_schema" if kind == "json" else kind, value))
    if len(wanted) > 1:
        raise invalid("response_format", "only one constraint can be given")
    for kind, value in wanted:
        _set_constraint(message.constraint, kind, value)


def _of_response_format(body: Body) -> tuple[str, Any] | None:
    match body.text("type"):
        case "text":
            return None
        case "json_object":
            return "json_object", None
        case "json_schema":
            wrapper = body.mapping("json_schema")
            if wrapper is None or not isinstance(wrapper.get("schema"), (dict, bool)):
                raise invalid("response_format", "json_schema.schema is required")
            return "json_schema", wrapper["schema"]
        case _:
            raise invalid("response_format", "type is not text, json_object or json_schema")


def _set_constraint(constraint: pb.OutputConstraint, kind: str, value: Any) -> None:
    if kind == "json_object":
        constraint.json_object.SetInParent()
    elif kind == "choice":
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise invalid("response_format", "choice is not an array of strings")
        constraint.choice.SetInParent()
        constraint.choice.choices.extend(checked_text(each, "response_format") for each in value)
    else:
        text = json.dumps(value) if kind == "json_schema" and not isinstance(value, str) else value
        if not isinstance(text, str):
            raise invalid("response_format", f"{kind} is not a string")
        setattr(constraint, kind, checked_text(text, "response_format"))


def _fill_experts(body: Body, message: pb.GenerateRequest) -> None:
    data = body.mapping("experts")
    if data is None:
        return
    experts = Body(data, "experts.")
    message.experts.allowed_experts.extend(experts.integers("allowed_experts", MAX_EXPERT_IDS) or ())
    message.experts.denied_experts.extend(experts.integers("denied_experts", MAX_EXPERT_IDS) or ())
    per_token = experts.raw("experts_per_token")
    if per_token is not None:
        path = experts.path("experts_per_token")
        message.experts.experts_per_token = checked_integer(per_token, path, 0, (1 << 32) - 1)
