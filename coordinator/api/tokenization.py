"""Tokenize, Detokenize and GetModelInfo: answers that need no engine."""

from coordinator.api.errors import ApiError, Reason
from coordinator.api.served_model import ServedModel
from coordinator.api.validation import check_text, check_token_list, encode, raise_temperature
from coordinator.api.violations import Violations
from protos.expertmesh.v1 import generation_pb2 as pb


def tokenize(message: pb.TokenizeRequest, served: ServedModel) -> pb.TokenizeResponse:
    """Raises ApiError."""
    served.check_name(message.model)
    violations = Violations()
    kind = message.WhichOneof("input")
    if kind is None:
        violations.add("input", "exactly one of text and chat is required")
    elif kind == "text":
        check_text("text", message.text, violations, least=0)
    violations.raise_if_any()
    if kind == "chat":
        raise ApiError.of(Reason.UNSUPPORTED_FEATURE, "is not supported by this server", field="chat")
    add_bos = message.add_special_tokens if message.HasField("add_special_tokens") else True
    token_ids = encode("text", message.text, served, add_bos=add_bos)
    tokenizer = served.require_tokenizer("text")
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
    """What is not built yet is reported as a limit of 0, 1 or false. Raises ApiError."""
    served.check_name(message.model)
    config, defaults = served.config, served.generation
    return pb.GetModelInfoResponse(
        model=served.name,
        aliases=served.aliases,
        architecture=served.architecture,
        max_context_length=served.max_context,
        max_output_tokens=served.max_output_tokens,
        vocab_size=config.vocab_size,
        eos_token_ids=defaults.eos_token_ids,
        default_sampling=pb.SamplingParams(
            temperature=raise_temperature(defaults.temperature),
            top_p=defaults.top_p,
            top_k=defaults.top_k,
            min_p=0.0,
        ),
        max_num_sequences=1,
        num_moe_layers=config.n_layers,
        num_experts=config.n_experts,
        experts_per_token=config.top_k,
    )
