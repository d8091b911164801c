"""Names of spans and attributes, all of them: OpenTelemetry's GenAI conventions still change."""

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import ApiError
from coordinator.api.validation.request import ValidRequest

# Where a header is told, by transport.
_HEADERS = {"http": "http.request.header", "grpc": "rpc.request.metadata"}

Value = str | int | float | bool | list[str]


def operation(valid: ValidRequest) -> str:
    return "chat" if valid.is_chat else "text_completion"


def span_name(valid: ValidRequest) -> str:
    return f"{operation(valid)} {valid.model}"


def started_attributes(caller: Caller, valid: ValidRequest) -> dict[str, Value]:
    """What was asked; never what was said."""
    request = valid.request
    sampling, stop = request.sampling, request.stop
    found: dict[str, Value] = {
        "gen_ai.operation.name": operation(valid),
        "gen_ai.provider.name": "expertmesh",
        "gen_ai.request.model": valid.model,
        "gen_ai.request.max_tokens": stop.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.choice.count": request.num_sequences,
        "gen_ai.request.stream": caller.streams,
        "gen_ai.response.id": caller.request_id,
        "gen_ai.response.model": valid.model,
    }
    found |= {f"{_HEADERS[caller.transport]}.{name}": [value] for name, value in caller.given_ids.items()}
    if stop.stop_text is not None:
        found["gen_ai.request.stop_sequences"] = [
            sequence.decode(errors="replace") for sequence in stop.stop_text.sequences
        ]
    if valid.seed is not None:
        # As text: an attribute's integers have a sign.
        found["gen_ai.request.seed"] = str(valid.seed)
    return found


def finished_attributes(
    facts: Facts, error: ApiError | None, num_steps: int, *, cancelled: bool
) -> dict[str, Value]:
    found: dict[str, Value] = {
        "gen_ai.response.finish_reasons": [reason for _, reason in sorted(facts.finish_reasons.items())],
        "gen_ai.usage.input_tokens": facts.prompt_tokens,
        "gen_ai.usage.output_tokens": facts.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": facts.cached_tokens,
        "expertmesh.num_steps": num_steps,
    }
    if facts.time_to_first_token is not None:
        found["gen_ai.response.time_to_first_chunk"] = facts.time_to_first_token
    if error is not None:
        found["error.type"] = error.reason.value
    elif cancelled:
        found["error.type"] = "CANCELLED"
    return found
