"""OpenAI's parameters, and ours beside them, as fields of a GenerateRequest. Values are checked there.

Only types are looked at here; fields that are not for us were refused before.
"""

from dataclasses import dataclass

from coordinator.api.http.constraint import fill_constraint
from coordinator.api.http.json import Body, checked_integer, checked_text, invalid
from coordinator.api.validation.response import MAX_EXPERT_IDS
from coordinator.api.validation.sampling import MAX_ALLOWED_IDS, MAX_BAD_WORDS, MAX_BIASES
from coordinator.api.validation.sampling_numbers import NUMBERS
from coordinator.api.validation.stopping import MAX_STOP_SEQUENCES, MAX_STOP_TOKEN_IDS
from expertmesh.v1 import generation_pb2 as pb

# Ours -> theirs, longest first where one begins another. What is not here is named as it is.
_NAMES = {
    "prompt.text": "prompt",
    "text": "prompt",
    "prompt.token_ids": "prompt",
    "token_ids": "tokens",
    "chat.messages": "messages",
    "chat.add_generation_prompt": "add_generation_prompt",
    "chat.continue_final_message": "continue_final_message",
    "chat.template_kwargs": "chat_template_kwargs",
    "chat.tools": "tools",
    "chat.tool_choice": "tool_choice",
    "chat": "messages",
    "sampling.num_sequences": "n",
    "stopping.stop_sequences": "stop",
    "stopping.include_stop_in_output": "include_stop_str_in_output",
    "stopping.time_limit": "time_limit_ms",
    "response.return_routed_experts": "return_routed_experts",
    "response.min_tokens_per_message": "stream_interval",
    "constraint.compact_json": "disable_any_whitespace",
}
_GROUPS = ("sampling.", "stopping.", "response.")


@dataclass(frozen=True, slots=True)
class Names:
    """What decides how one request calls fields of ours. `constraint` is its own field that asks for one,
    `max_tokens` the one that limits its output."""

    is_chat: bool = False
    constraint: str = ""
    max_tokens: str = "max_tokens"


NO_NAMES = Names()


def parameter_of(field: str, names: Names) -> str:
    """What a caller of this front calls a field of ours."""
    if field.startswith("prompt.chat"):
        # As /tokenize has it.
        field = field.removeprefix("prompt.")
    for ours, theirs in _NAMES.items():
        if field == ours or field.startswith((f"{ours}.", f"{ours}[")):
            return theirs + field[len(ours) :] if field.startswith(f"{ours}[") else theirs
    if names.is_chat and field == "response.logprobs":
        return "top_logprobs"
    if field == "constraint" or field.startswith("constraint."):
        return names.constraint
    if field == "stopping.max_tokens":
        return names.max_tokens
    for group in _GROUPS:
        field = field.removeprefix(group)
    return field


def fill_request(body: Body, message: pb.GenerateRequest) -> str:
    """All that completions and chat have in common. Returns the field that asks for a constraint, if any.
    Raises ApiError naming the parameter."""
    message.model = body.text("model") or ""
    _fill_sampling(body, message.sampling)
    _fill_stopping(body, message.stopping)
    _fill_response(body, message.response)
    constraint = fill_constraint(body, message.constraint)
    _fill_experts(body, message)
    truncate = body.integer("truncate_prompt_tokens")
    if truncate is not None:
        message.truncate_prompt_tokens = truncate
    add_special = body.boolean("add_special_tokens")
    if add_special is not None:
        message.add_special_tokens = add_special
    return constraint


def _fill_sampling(body: Body, sampling: pb.SamplingParams) -> None:
    for each in NUMBERS:
        # vLLM's -1 is its older word for off.
        value = body.integer(each.name, least=-1) if each.is_whole else body.number(each.name)
        if value is not None:
            setattr(sampling, each.name, max(0, value) if each.is_whole else value)
    seed = body.integer("seed", least=-(1 << 63), most=(1 << 64) - 1)
    if seed is not None:
        sampling.seed = seed % (1 << 64)
    n = body.integer("n")
    if n is not None:
        sampling.num_sequences = n
    _fill_allowed(body, sampling)
    biases, path = body.mapping("logit_bias") or {}, "logit_bias"
    if len(biases) > MAX_BIASES:
        raise invalid(path, f"{len(biases)} entries are more than {MAX_BIASES}")
    for key, bias in biases.items():
        if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) >= 1 << 32:
            raise invalid(path, "has a key that is no token id")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or abs(bias) > 1e9:
            raise invalid(f"{path}[{int(key)}]", "is not a number in [-100, 100]")
        sampling.logit_bias[int(key)] = bias


def _fill_allowed(body: Body, sampling: pb.SamplingParams) -> None:
    allowed = body.integers("allowed_token_ids", MAX_ALLOWED_IDS)
    if allowed is not None and not allowed:
        raise invalid("allowed_token_ids", "is empty, which leaves no token to draw")
    if allowed:
        sampling.allowed_token_ids.extend(allowed)
    words = body.texts("bad_words", MAX_BAD_WORDS)
    if words:
        sampling.bad_words.extend(words)


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
    interval = body.integer("stream_interval")
    if interval is not None:
        response.min_tokens_per_message = interval


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
    experts.refuse_others(allowed="allowed_experts", denied="denied_experts")
