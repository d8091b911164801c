"""SamplingParams of a request: limits, and what the engine makes of them."""

import math
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.sampling_numbers import check_numbers, given_numbers
from coordinator.api.validation.violations import Violations
from coordinator.engine.messages.request import TokenRules
from expertmesh.v1 import generation_pb2 as pb
from moe_model.checkpoint.generation_defaults import NEUTRAL
from moe_model.errors import TokenizerError
from moe_model.sampling.params import SamplingParams

MAX_BIASES = 1024
# No vocabulary is larger; more ids are not even looked at.
MAX_ALLOWED_IDS = 1 << 20
MAX_BAD_WORDS = 128
MAX_BAD_WORD_BYTES = 256
# Smaller temperatures divide logits into infinities.
MIN_TEMPERATURE = 0.01


def check_sampling(sampling: pb.SamplingParams, served: ServedModel, violations: Violations) -> None:
    vocab_size = served.config.vocab_size
    check_numbers(sampling, vocab_size, violations)
    _check_num_sequences(sampling, served, violations)
    _check_bias(sampling, vocab_size, violations)
    _check_allowed(sampling, vocab_size, violations)


def sampling_params(sampling: pb.SamplingParams, served: ServedModel) -> SamplingParams:
    """Of a checked message; what is unset is the model's own."""
    defaults = served.sampling_defaults
    models: dict[str, Any] = {name: getattr(defaults, name) for name in NEUTRAL}
    return SamplingParams(
        **models | given_numbers(sampling) | {"temperature": temperature_of(sampling, served)},
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
        logit_bias=tuple(sorted(sampling.logit_bias.items())),
    )


def token_rules(sampling: pb.SamplingParams, served: ServedModel, *, constrained: bool) -> TokenRules | None:
    """Of a checked message; None where any token may be drawn. Raises ApiError."""
    if not (sampling.allowed_token_ids or sampling.bad_words):
        return None
    rules = TokenRules(
        tuple(sampling.allowed_token_ids),
        tuple(_forbidden(sampling.bad_words, served)),
        served.generation_defaults.eos_token_ids if constrained else (),
    )
    if not rules.leave_some(served.config.vocab_size):
        text = "leaves no token to draw beside bad_words"
        raise ApiError.of(Reason.INVALID_FIELD, text, field="sampling.allowed_token_ids")
    return rules


def _forbidden(words: Iterable[str], served: ServedModel) -> Iterator[tuple[int, ...]]:
    """Tokens of each word, as it begins a text and as it stands behind a space."""
    for index, word in enumerate(words):
        field = f"sampling.bad_words[{index}]"
        tokenizer = served.require_tokenizer(field)
        bare = word.lstrip(" ")
        for text in {word, bare or word, f" {bare}" if bare else word}:
            try:
                token_ids = tokenizer.encode(text, add_bos=False)
            except TokenizerError:
                token_ids = []
            if not token_ids:
                raise ApiError.of(Reason.INVALID_FIELD, "the tokenizer cannot take this text", field=field)
            # What the model does not have it cannot write.
            if max(token_ids) < served.config.vocab_size:
                yield tuple(token_ids)


def temperature_of(sampling: pb.SamplingParams, served: ServedModel) -> float:
    asked = sampling.temperature if sampling.HasField("temperature") else served.sampling_defaults.temperature
    return raise_temperature(asked)


def raise_temperature(temperature: float) -> float:
    """0 stays greedy; what lies between it and the least usable temperature becomes that."""
    return max(temperature, MIN_TEMPERATURE) if temperature > 0 else 0.0


def _check_num_sequences(sampling: pb.SamplingParams, served: ServedModel, violations: Violations) -> None:
    if not sampling.HasField("num_sequences"):
        return
    count, most = sampling.num_sequences, served.max_num_sequences
    violations.check(1 <= count <= most, "sampling.num_sequences", count, f"[1, {most}]")
    if count > 1 and temperature_of(sampling, served) == 0:
        violations.add("sampling.num_sequences", "greedy decoding would give the same sequence every time")


def _check_bias(sampling: pb.SamplingParams, vocab_size: int, violations: Violations) -> None:
    field = "sampling.logit_bias"
    if len(sampling.logit_bias) > MAX_BIASES:
        violations.add(field, f"{len(sampling.logit_bias)} entries are more than {MAX_BIASES}")
        return
    for token_id, bias in sorted(sampling.logit_bias.items()):
        if token_id >= vocab_size:
            violations.add_token_id(f"{field}[{token_id}]", token_id, vocab_size)
        elif not (math.isfinite(bias) and -100 <= bias <= 100):
            violations.add(f"{field}[{token_id}]", f"{bias} is not in [-100, 100]", Reason.INVALID_FIELD)


def _check_allowed(sampling: pb.SamplingParams, vocab_size: int, violations: Violations) -> None:
    ids, field = sampling.allowed_token_ids, "sampling.allowed_token_ids"
    if len(ids) > MAX_ALLOWED_IDS:
        violations.add(field, f"{len(ids)} ids are more than {MAX_ALLOWED_IDS}")
    else:
        violations.check_token_ids(field, ids, vocab_size)
    violations.check_texts(
        "sampling.bad_words", sampling.bad_words, "words", MAX_BAD_WORDS, MAX_BAD_WORD_BYTES
    )
