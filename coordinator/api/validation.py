"""GenerateRequest -> Generation: the one gate that every request of every front passes.

Order of refusal: unknown model; everything wrong with supported fields, at once; fields that are not built;
what needs the tokenizer; what needs the prompt's length. So an invalid value wins over an unsupported
field, and nothing costly runs before the cheap checks.
"""

import secrets
from dataclasses import dataclass

from coordinator.api.errors import ApiError, Reason
from coordinator.api.limits import check_context, output_limit
from coordinator.api.served_model import ServedModel
from coordinator.api.supported import check_supported
from coordinator.api.violations import Violations
from coordinator.engine.request import ContextOverflow, Request, StopRules
from moe_model.errors import TokenizerError
from moe_model.manifest import MAX_TEMPERATURE
from moe_model.sampling import SamplingParams
from protos.expertmesh.v1 import generation_pb2 as pb

MAX_TEXT_BYTES = 4 << 20
# A sliding prompt may exceed the context; this bounds what it may cost to hold and to check.
MAX_PROMPT_TOKENS = 1 << 20
MAX_STOP_TOKEN_IDS = 64
# Smaller temperatures divide logits into infinities.
MIN_TEMPERATURE = 0.01

OVERFLOWS = {
    pb.CONTEXT_OVERFLOW_STOP: ContextOverflow.STOP,
    pb.CONTEXT_OVERFLOW_SLIDE: ContextOverflow.SLIDE,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A valid request: what the engine runs, and what of it the caller wants to see."""

    request: Request
    model: str
    return_text: bool
    return_token_ids: bool
    # None for greedy decoding, which draws nothing.
    seed: int | None


def resolve(
    message: pb.GenerateRequest, served: ServedModel, request_id: str, arrival_time: float
) -> Generation:
    """Raises ApiError. `arrival_time` is `time.monotonic()`."""
    served.check_name(message.model)
    check_fields(message, served)
    check_supported(message)
    wants_text = _wants_text(message.response, served)
    prompt_ids = _prompt_ids(message, served)
    stop = _stop_rules(message, served, len(prompt_ids))
    sampling = _sampling_params(message.sampling, served)
    return Generation(
        request=Request(request_id, prompt_ids, sampling, stop, arrival_time=arrival_time),
        model=served.name,
        return_text=wants_text,
        return_token_ids=message.response.return_token_ids,
        seed=sampling.seed if sampling.temperature > 0 else None,
    )


def check_fields(message: pb.GenerateRequest, served: ServedModel) -> None:
    """Raises one INVALID_ARGUMENT with all that is wrong with the supported fields."""
    violations = Violations()
    violations.check_request_id("request_id", message.request_id)
    _check_prompt(message, served, violations)
    _check_sampling(message.sampling, served, violations)
    _check_stopping(message, served, violations)
    violations.raise_if_any()


def check_token_list(
    field: str, token_ids: list[int], served: ServedModel, violations: Violations, least: int = 1
) -> None:
    if not least <= len(token_ids) <= MAX_PROMPT_TOKENS:
        violations.add(field, f"{len(token_ids)} ids are not in [{least}, {MAX_PROMPT_TOKENS}]")
    else:
        violations.check_token_ids(field, token_ids, served.config.vocab_size)


def check_text(field: str, text: str, violations: Violations, least: int = 1) -> None:
    num_bytes = len(text.encode())
    if not least <= num_bytes <= MAX_TEXT_BYTES:
        violations.add(field, f"{num_bytes} bytes are not in [{least}, {MAX_TEXT_BYTES}]")


def encode(field: str, text: str, served: ServedModel, *, add_bos: bool = True) -> list[int]:
    """Token ids of a text, all of them in the model's vocabulary. Raises ApiError."""
    tokenizer = served.require_tokenizer(field)
    try:
        token_ids = tokenizer.encode(text, add_bos=add_bos)
    except TokenizerError:
        raise ApiError.of(Reason.INVALID_FIELD, "the tokenizer cannot take this text", field=field) from None
    if token_ids and max(token_ids) >= served.config.vocab_size:
        raise ApiError.of(
            Reason.TOKEN_ID_OUT_OF_RANGE,
            f"its token {max(token_ids)} is not in [0, {served.config.vocab_size})",
            field=field,
            metadata={"vocab_size": str(served.config.vocab_size)},
        )
    return token_ids


def prompt_field(message: pb.GenerateRequest) -> str:
    return f"prompt.{message.WhichOneof('prompt')}"


def _check_prompt(message: pb.GenerateRequest, served: ServedModel, violations: Violations) -> None:
    match message.WhichOneof("prompt"):
        case None:
            violations.add("prompt", "exactly one of text, token_ids and chat is required")
        case "text":
            check_text("prompt.text", message.text, violations)
        case "token_ids":
            check_token_list("prompt.token_ids", list(message.token_ids.ids), served, violations)


def _check_sampling(sampling: pb.SamplingParams, served: ServedModel, violations: Violations) -> None:
    vocab_size = served.config.vocab_size
    if sampling.HasField("temperature"):
        fine = 0 <= sampling.temperature <= MAX_TEMPERATURE
        violations.check(fine, "sampling.temperature", sampling.temperature, "[0, 2]")
    if sampling.HasField("top_p"):
        violations.check(0 < sampling.top_p <= 1, "sampling.top_p", sampling.top_p, "(0, 1]")
    violations.check(sampling.top_k <= vocab_size, "sampling.top_k", sampling.top_k, f"[0, {vocab_size}]")
    violations.check(0 <= sampling.min_p <= 1, "sampling.min_p", sampling.min_p, "[0, 1]")


def _check_stopping(message: pb.GenerateRequest, served: ServedModel, violations: Violations) -> None:
    stopping, most = message.stopping, served.max_output_tokens
    if stopping.HasField("max_tokens"):
        # Only a request that scores its prompt may ask for nothing.
        least = 0 if message.response.HasField("prompt_logprobs") else 1
        fine = least <= stopping.max_tokens <= most
        violations.check(fine, "stopping.max_tokens", stopping.max_tokens, f"[{least}, {most}]")
        most = stopping.max_tokens
    fine = stopping.min_tokens <= most
    violations.check(fine, "stopping.min_tokens", stopping.min_tokens, f"[0, {most}]")
    if len(stopping.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        violations.add(
            "stopping.stop_token_ids",
            f"{len(stopping.stop_token_ids)} ids are more than {MAX_STOP_TOKEN_IDS}",
        )
    else:
        ids = stopping.stop_token_ids
        violations.check_token_ids("stopping.stop_token_ids", ids, served.config.vocab_size)
    overflow = stopping.context_overflow
    if overflow not in (pb.CONTEXT_OVERFLOW_UNSPECIFIED, *OVERFLOWS):
        violations.add("stopping.context_overflow", f"{overflow} is not a known value")


def _wants_text(response: pb.ResponseOptions, served: ServedModel) -> bool:
    """Text unless declined; without a tokenizer only an explicit wish for text is an error."""
    if response.HasField("return_text"):
        if response.return_text:
            served.require_tokenizer("response.return_text")
        return response.return_text
    return served.tokenizer is not None


def _prompt_ids(message: pb.GenerateRequest, served: ServedModel) -> tuple[int, ...]:
    if message.WhichOneof("prompt") == "token_ids":
        return tuple(message.token_ids.ids)
    token_ids = encode("prompt.text", message.text, served)
    violations = Violations()
    if not 1 <= len(token_ids) <= MAX_PROMPT_TOKENS:
        violations.add("prompt.text", f"{len(token_ids)} tokens are not in [1, {MAX_PROMPT_TOKENS}]")
    violations.raise_if_any()
    return tuple(token_ids)


def _stop_rules(message: pb.GenerateRequest, served: ServedModel, num_prompt: int) -> StopRules:
    stopping = message.stopping
    overflow = OVERFLOWS.get(stopping.context_overflow, served.default_overflow)
    asked = stopping.max_tokens if stopping.HasField("max_tokens") else None
    if overflow is ContextOverflow.STOP:
        check_context(served, num_prompt, asked, prompt_field(message))
    max_tokens = output_limit(served, num_prompt, asked, overflow, prompt_field(message))
    violations = Violations()
    fine = stopping.min_tokens <= max_tokens
    violations.check(fine, "stopping.min_tokens", stopping.min_tokens, f"[0, {max_tokens}]")
    violations.raise_if_any()
    return StopRules(
        max_tokens=max_tokens,
        min_tokens=stopping.min_tokens,
        stop_token_ids=frozenset(stopping.stop_token_ids),
        eos_token_ids=frozenset(served.generation.eos_token_ids),
        ignore_eos=stopping.ignore_eos,
        context_overflow=overflow,
    )


def _sampling_params(sampling: pb.SamplingParams, served: ServedModel) -> SamplingParams:
    defaults = served.generation
    return SamplingParams(
        temperature=raise_temperature(
            sampling.temperature if sampling.HasField("temperature") else defaults.temperature
        ),
        top_k=sampling.top_k if sampling.HasField("top_k") else defaults.top_k,
        top_p=sampling.top_p if sampling.HasField("top_p") else defaults.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
    )


def raise_temperature(temperature: float) -> float:
    """0 stays greedy; what lies between it and the least usable temperature becomes that."""
    return max(temperature, MIN_TEMPERATURE) if temperature > 0 else 0.0
