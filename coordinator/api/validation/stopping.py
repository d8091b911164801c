"""StoppingParams of a request: limits, and what the engine makes of them."""

from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.violations import Violations
from coordinator.engine.messages.request import ContextOverflow, StopRules, StopText
from expertmesh.v1 import generation_pb2 as pb

MAX_STOP_TOKEN_IDS = 64
MAX_STOP_SEQUENCES = 16
MAX_STOP_BYTES = 256
# Nanoseconds.
MIN_TIME_LIMIT, MAX_TIME_LIMIT = 10**6, 3600 * 10**9

OVERFLOWS = {
    pb.CONTEXT_OVERFLOW_STOP: ContextOverflow.STOP,
    pb.CONTEXT_OVERFLOW_SLIDE: ContextOverflow.SLIDE,
}


def check_stopping(message: pb.GenerateRequest, served: ServedModel, violations: Violations) -> None:
    stopping, most = message.stopping, served.max_output_tokens
    if stopping.HasField("max_tokens"):
        # Only a request that scores its prompt may ask for nothing.
        least = 0 if message.response.HasField("prompt_logprobs") else 1
        fine = least <= stopping.max_tokens <= most
        violations.check(fine, "stopping.max_tokens", stopping.max_tokens, f"[{least}, {most}]")
        most = stopping.max_tokens
    fine = stopping.min_tokens <= most
    violations.check(fine, "stopping.min_tokens", stopping.min_tokens, f"[0, {most}]")
    _check_stop_sequences(stopping, violations)
    ids, field = stopping.stop_token_ids, "stopping.stop_token_ids"
    if len(ids) > MAX_STOP_TOKEN_IDS:
        violations.add(field, f"{len(ids)} ids are more than {MAX_STOP_TOKEN_IDS}")
    else:
        violations.check_token_ids(field, ids, served.config.vocab_size)
    if stopping.HasField("time_limit"):
        _check_time_limit(stopping, violations)
    overflow = stopping.context_overflow
    if overflow not in (pb.CONTEXT_OVERFLOW_UNSPECIFIED, *OVERFLOWS):
        violations.add("stopping.context_overflow", f"{overflow} is not a known value")


def overflow_of(stopping: pb.StoppingParams, served: ServedModel) -> ContextOverflow:
    return OVERFLOWS.get(stopping.context_overflow, served.default_overflow)


def stop_rules(
    message: pb.GenerateRequest, served: ServedModel, max_tokens: int, *, skip_special_tokens: bool
) -> StopRules:
    """Of a checked message. Raises NO_TOKENIZER for stop sequences that cannot be matched."""
    stopping = message.stopping
    return StopRules(
        max_tokens=max_tokens,
        min_tokens=stopping.min_tokens,
        stop_token_ids=frozenset(stopping.stop_token_ids),
        eos_token_ids=frozenset(served.generation_defaults.eos_token_ids),
        # A constraint lets EOS in only where the output is complete.
        ignore_eos=stopping.ignore_eos and message.constraint.WhichOneof("constraint") is None,
        context_overflow=overflow_of(stopping, served),
        stop_text=_stop_text(stopping, served, skip_special_tokens=skip_special_tokens),
        time_limit=_nanoseconds(stopping) / 1e9 if stopping.HasField("time_limit") else None,
    )


def _check_stop_sequences(stopping: pb.StoppingParams, violations: Violations) -> None:
    violations.check_texts(
        "stopping.stop_sequences", stopping.stop_sequences, "sequences", MAX_STOP_SEQUENCES, MAX_STOP_BYTES
    )


def _check_time_limit(stopping: pb.StoppingParams, violations: Violations) -> None:
    """A Duration whose parts differ in sign, or whose nanos are a second or more, is none."""
    limit, field = stopping.time_limit, "stopping.time_limit"
    if abs(limit.nanos) >= 10**9 or limit.seconds * limit.nanos < 0:
        violations.add(field, "is not a valid duration")
    else:
        nanoseconds = _nanoseconds(stopping)
        fine = MIN_TIME_LIMIT <= nanoseconds <= MAX_TIME_LIMIT
        violations.check(fine, field, nanoseconds / 1e9, "[0.001, 3600] seconds")


def _nanoseconds(stopping: pb.StoppingParams) -> int:
    return stopping.time_limit.seconds * 10**9 + stopping.time_limit.nanos


def _stop_text(
    stopping: pb.StoppingParams, served: ServedModel, *, skip_special_tokens: bool
) -> StopText | None:
    if not stopping.stop_sequences:
        return None
    served.require_tokenizer("stopping.stop_sequences")
    return StopText(tuple(sequence.encode() for sequence in stopping.stop_sequences), skip_special_tokens)
