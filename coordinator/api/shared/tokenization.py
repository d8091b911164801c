"""Tokenize, Detokenize and GetModelInfo: answers that need no engine."""

from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.prompt import check_chat, check_text, check_token_list, encode, render_chat
from coordinator.api.validation.sampling import raise_temperature
from coordinator.api.validation.violations import Violations
from expertmesh.v1 import generation_pb2 as pb


def tokenize(message: pb.TokenizeRequest, served: ServedModel) -> pb.TokenizeResponse:
    """Raises ApiError."""
    served.check_name(message.model)
    violations = Violations()
    kind = message.WhichOneof("input")
    if kind is None:
        violations.add("input", "exactly one of text and chat is required")
    elif kind == "text":
        check_text("text", message.text, violations, least=0)
    else:
        check_chat("chat", message.chat, violations)
        if message.add_special_tokens:
            violations.add("add_special_tokens", "is for text; a chat template brings its own")
    violations.raise_if_any()
    if kind == "chat":
        token_ids = encode("chat", render_chat("chat", message.chat, served), served, add_bos=False)
    else:
        add_bos = message.add_special_tokens if message.HasField("add_special_tokens") else True
        token_ids = encode("text", message.text, served, add_bos=add_bos)
    tokenizer = served.require_tokenizer(kind or "input")
    token_bytes = map(tokenizer.token_bytes, token_ids) if message.return_token_bytes else ()
    return pb.TokenizeResponse(
        token_ids=token_ids, token_bytes=token_bytes, max_context_length=served.max_context
    )


def detokenize(message: pb.DetokenizeRequest, served: ServedModel) -> pb.DetokenizeResponse:
    """Raises ApiError."""
    served.check_name(message.model)
    token_ids = list(message.token_ids)
    violations = Violations()
    check_token_list("token_ids", token_ids, served, violations, least=0)
    violations.raise_if_any()
    tokenizer = served.require_tokenizer("token_ids")
    text = tokenizer.decode(token_ids, skip_special_tokens=message.skip_special_tokens)
    return pb.DetokenizeResponse(text=text)


def model_info(message: pb.GetModelInfoRequest, served: ServedModel) -> pb.GetModelInfoResponse:
    """Limits, defaults and what is to be had here. Raises ApiError."""
    served.check_name(message.model)
    config, defaults = served.config, served.sampling_defaults
    return pb.GetModelInfoResponse(
        model=served.name,
        aliases=served.aliases,
        architecture=served.architecture,
        max_context_length=served.max_context,
        max_output_tokens=served.max_output_tokens,
        vocab_size=config.vocab_size,
        eos_token_ids=served.generation_defaults.eos_token_ids,
        has_chat_template=served.chat_template is not None and not served.chat_template.refusal,
        default_sampling=pb.SamplingParams(
            temperature=raise_temperature(defaults.temperature),
            top_p=defaults.top_p,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
        ),
        max_logprobs=served.max_logprobs,
        max_num_sequences=served.max_num_sequences,
        supported_constraints=_constraint_kinds(served),
        supports_routed_experts=served.allow_routed_experts,
        num_moe_layers=len(config.moe_layers),
        num_experts=max(map(len, served.experts)),
        experts_per_token=config.top_k,
        tool_form="" if served.chat_template is None else served.chat_template.call_form.name,
        has_reasoning=served.chat_template is not None and served.chat_template.thoughts is not None,
    )


def _constraint_kinds(served: ServedModel) -> tuple[str, ...]:
    if served.constraints is None or served.tokenizer is None:
        return ()
    return tuple(served.constraints.kinds)
