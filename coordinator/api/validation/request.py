"""GenerateRequest -> ValidRequest: the one gate that every request of every front passes.

Order of refusal: unknown model; everything wrong with the fields, at once; features that are not to be had
here; what needs the tokenizer; what needs the prompt's length; the constraint, which is the costliest. So
nothing costly runs before the cheap checks.
"""

from dataclasses import dataclass, replace

from coordinator.api.requests.limits import check_context, output_limit
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.prompt import check_prompt, prompt_field, prompt_ids, render_chat
from coordinator.api.validation.response import (
    check_constraint,
    check_experts,
    check_response,
    constraint_of,
    expert_selection,
)
from coordinator.api.validation.sampling import check_sampling, sampling_params, token_rules
from coordinator.api.validation.stopping import check_stopping, overflow_of, stop_rules
from coordinator.api.validation.tools import calls_constraint, must_call, output_form
from coordinator.api.validation.violations import Violations
from coordinator.engine.messages.request import ContextOverflow, Request, Returns
from coordinator.tools.output_reader import OutputForm
from expertmesh.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A valid request: what the engine runs, and what of it the caller wants to see. `output_form` is how a
    conversation's output is read; None: as text."""

    request: Request
    model: str
    return_text: bool
    return_token_ids: bool
    return_prompt_token_ids: bool
    skip_special_tokens: bool
    include_stop: bool
    min_tokens_per_message: int
    # None for greedy decoding, which draws nothing.
    seed: int | None
    is_chat: bool
    output_form: OutputForm | None = None


def resolve(
    message: pb.GenerateRequest,
    served: ServedModel,
    request_id: str,
    arrival_time: float,
    cache_salt: bytes = b"",
) -> ValidRequest:
    """Raises ApiError. `arrival_time` is `time.monotonic()`."""
    served.check_name(message.model)
    check_fields(message, served)
    _check_features(message, served)
    response = message.response
    wants_text = _wants_text(response, served)
    is_chat = message.WhichOneof("prompt") == "chat"
    rendered = render_chat(prompt_field(message), message.chat, served) if is_chat else ""
    form = output_form(message, served, rendered)
    request = _engine_request(message, served, rendered, form)
    request = replace(request, request_id=request_id, arrival_time=arrival_time, cache_salt=cache_salt)
    return ValidRequest(
        request=request,
        model=served.name,
        return_text=wants_text,
        return_token_ids=response.return_token_ids,
        return_prompt_token_ids=response.return_prompt_token_ids,
        skip_special_tokens=_skips_special(response),
        include_stop=message.stopping.include_stop_in_output,
        min_tokens_per_message=response.min_tokens_per_message or 1,
        seed=request.sampling.seed if request.sampling.temperature > 0 else None,
        is_chat=is_chat,
        output_form=form,
    )


def _engine_request(
    message: pb.GenerateRequest, served: ServedModel, rendered: str, form: OutputForm | None
) -> Request:
    """What the engine is asked; whose request it is, and when it came, its caller knows."""
    token_ids = prompt_ids(
        message, served, lambda least: _check_length(message, served, least, is_least=True), rendered
    )
    max_tokens = _max_tokens(message, served, len(token_ids))
    constrained = message.constraint.WhichOneof("constraint") is not None or must_call(message.chat)
    return Request(
        "",
        token_ids,
        sampling_params(message.sampling, served),
        stop_rules(message, served, max_tokens, skip_special_tokens=_skips_special(message.response)),
        num_sequences=message.sampling.num_sequences or 1,
        returns=_returns(message.response),
        experts=expert_selection(message.experts, served),
        token_rules=token_rules(message.sampling, served, constrained=constrained),
        # Last: it costs most.
        constraint=constraint_of(message, served, form) or calls_constraint(message.chat, served, form),
    )


def _skips_special(response: pb.ResponseOptions) -> bool:
    return response.skip_special_tokens if response.HasField("skip_special_tokens") else True


def check_fields(message: pb.GenerateRequest, served: ServedModel) -> None:
    """Raises one INVALID_ARGUMENT with all that is wrong."""
    violations = Violations()
    violations.check_request_id("request_id", message.request_id)
    check_prompt(message, served, violations)
    check_sampling(message.sampling, served, violations)
    check_stopping(message, served, violations)
    check_response(message.response, served, violations)
    check_experts(message.experts, served, violations)
    check_constraint(message, violations)
    _check_scoring(message, violations)
    violations.raise_if_any()


def _check_scoring(message: pb.GenerateRequest, violations: Violations) -> None:
    """A request that generates nothing has nothing to repeat or to constrain."""
    if not message.stopping.HasField("max_tokens") or message.stopping.max_tokens > 0:
        return
    if message.sampling.num_sequences > 1:
        violations.add("sampling.num_sequences", "is more than 1 where max_tokens is 0")
    if message.constraint.WhichOneof("constraint") is not None:
        violations.add("constraint", "has no output where max_tokens is 0")


def _check_features(message: pb.GenerateRequest, served: ServedModel) -> None:
    if message.response.return_routed_experts and not served.allow_routed_experts:
        raise ApiError.of(
            Reason.UNSUPPORTED_FEATURE,
            "is not supported by this server",
            field="response.return_routed_experts",
        )


def _wants_text(response: pb.ResponseOptions, served: ServedModel) -> bool:
    """Text unless declined; without a tokenizer only an explicit wish for text is an error."""
    if response.HasField("return_text"):
        if response.return_text:
            served.require_tokenizer("response.return_text")
        return response.return_text
    return served.tokenizer is not None


def _max_tokens(message: pb.GenerateRequest, served: ServedModel, num_prompt: int) -> int:
    """The request's limit, now that its prompt is known. Raises ApiError."""
    stopping = message.stopping
    _check_length(message, served, num_prompt)
    overflow, asked = overflow_of(stopping, served), _asked(stopping)
    max_tokens = output_limit(served, num_prompt, asked, overflow, prompt_field(message))
    violations = Violations()
    fine = stopping.min_tokens <= max_tokens
    violations.check(fine, "stopping.min_tokens", stopping.min_tokens, f"[0, {max_tokens}]")
    violations.raise_if_any()
    return max_tokens


def _check_length(
    message: pb.GenerateRequest, served: ServedModel, num_prompt: int, *, is_least: bool = False
) -> None:
    """Raises ApiError for a prompt of so many tokens, or more, that does not fit the context and has to."""
    asked = _asked(message.stopping)
    # What a sliding window has lost cannot be scored, and where nothing is generated nothing slides.
    scores = message.response.HasField("prompt_logprobs")
    stops = overflow_of(message.stopping, served) is ContextOverflow.STOP
    if stops or asked == 0 or (scores and num_prompt > served.max_context):
        check_context(served, num_prompt, asked, prompt_field(message), is_least=is_least)


def _asked(stopping: pb.StoppingParams) -> int | None:
    return stopping.max_tokens if stopping.HasField("max_tokens") else None


def _returns(response: pb.ResponseOptions) -> Returns:
    return Returns(
        logprobs=response.logprobs if response.HasField("logprobs") else None,
        prompt_logprobs=response.prompt_logprobs if response.HasField("prompt_logprobs") else None,
        routed_experts=response.return_routed_experts,
    )
