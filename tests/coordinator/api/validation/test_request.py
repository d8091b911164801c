"""Each limit at its edge and one past it, defaults, and the order of refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest

from coordinator.api.shared.errors import ApiError, Code, Reason
from coordinator.api.validation import prompt as validate_prompt
from coordinator.api.validation.request import resolve
from coordinator.config.model import GenerationConfig
from coordinator.engine.messages.request import ContextOverflow
from coordinator.engine.sampling.token_mask import TokenMask
from expertmesh.v1 import generation_pb2 as pb
from moe_model.checkpoint.generation_defaults import NEUTRAL
from moe_model.checkpoint.reader import GenerationDefaults
from moe_model.layers.expert_selection import ExpertSelection
from tests.coordinator.api.fakes import BOS, EOS, served_model, tiny_tokenizer
from tests.coordinator.api.made_requests import ids, refused, resolved

FINE = [
    "sampling { temperature: 0 }",
    "sampling { temperature: 2 }",
    "sampling { top_p: 5e-324 }",
    "sampling { top_p: 1 }",
    "sampling { top_k: 0 }",
    "sampling { top_k: 320 }",
    "sampling { min_p: 0 }",
    "sampling { min_p: 1 }",
    "sampling { seed: 18446744073709551615 }",
    "stopping { max_tokens: 1 }",
    "stopping { max_tokens: 31 }",
    "stopping { max_tokens: 40 context_overflow: CONTEXT_OVERFLOW_SLIDE }",
    "stopping { max_tokens: 3 min_tokens: 3 }",
    "stopping { min_tokens: 31 }",
    "stopping { stop_token_ids: 319 stop_token_ids: 0 }",
    "stopping { " + "stop_token_ids: 7 " * 64 + "}",
    "token_ids { ids: 0 ids: 319 }",
    ids(31),
    ids(2000) + " stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }",
    'model: "tiny"',
    'model: "default"',
    'request_id: "' + "a" * 128 + '"',
    'request_id: "A-z_0.9:"',
]

BROKEN = [
    ("sampling { temperature: -0.001 }", "sampling.temperature"),
    ("sampling { temperature: 2.001 }", "sampling.temperature"),
    ("sampling { temperature: nan }", "sampling.temperature"),
    ("sampling { temperature: inf }", "sampling.temperature"),
    ("sampling { top_p: 0 }", "sampling.top_p"),
    ("sampling { top_p: 1.0000001 }", "sampling.top_p"),
    ("sampling { top_p: nan }", "sampling.top_p"),
    ("sampling { top_k: 321 }", "sampling.top_k"),
    ("sampling { min_p: -1e-9 }", "sampling.min_p"),
    ("sampling { min_p: 1.0000001 }", "sampling.min_p"),
    ("sampling { min_p: nan }", "sampling.min_p"),
    ("stopping { max_tokens: 0 }", "stopping.max_tokens"),
    ("stopping { max_tokens: 41 context_overflow: CONTEXT_OVERFLOW_SLIDE }", "stopping.max_tokens"),
    ("stopping { max_tokens: 4294967295 }", "stopping.max_tokens"),
    ("stopping { max_tokens: 3 min_tokens: 4 }", "stopping.min_tokens"),
    ("stopping { min_tokens: 32 }", "stopping.min_tokens"),
    ("stopping { min_tokens: 41 }", "stopping.min_tokens"),
    ("stopping { " + "stop_token_ids: 7 " * 65 + "}", "stopping.stop_token_ids"),
    ("token_ids {}", "prompt.token_ids"),
    ('text: ""', "prompt.text"),
    ('request_id: "' + "a" * 129 + '"', "request_id"),
    ('request_id: "a b"', "request_id"),
    ('request_id: "a\\n"', "request_id"),
]


@pytest.mark.parametrize("text", FINE)
def test_takes_the_edge(text: str) -> None:
    resolved(text)


@pytest.mark.parametrize(("text", "field"), BROKEN)
def test_refuses_one_past_the_edge(text: str, field: str) -> None:
    error = refused(text)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert [violation.field for violation in error.violations] == [field]
    assert error.message.startswith(f"{field}: ")
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("token_ids { ids: 1 ids: 320 }", "prompt.token_ids[1]"),
        ("stopping { stop_token_ids: [1, 2, 3, 320] }", "stopping.stop_token_ids[3]"),
    ],
)
def test_a_token_id_out_of_the_vocabulary_is_named_by_index(text: str, field: str) -> None:
    error = refused(text)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, Reason.TOKEN_ID_OUT_OF_RANGE)
    assert error.field == field
    assert error.metadata == {"vocab_size": "320"}


def test_names_everything_that_is_wrong_at_once() -> None:
    error = refused(
        'request_id: "?" text: "" sampling { top_p: 2 min_p: 2 } '
        "stopping { max_tokens: 0 stop_token_ids: 999 }"
    )
    assert [violation.field for violation in error.violations] == [
        "request_id",
        "prompt.text",
        "sampling.top_p",
        "sampling.min_p",
        "stopping.max_tokens",
        "stopping.stop_token_ids[0]",
    ]
    assert error.message.endswith("(and 5 more)")


def test_at_most_sixteen_violations_are_named() -> None:
    error = refused(ids(1000, token_id=1000))
    assert len(error.violations) == 16
    assert error.message.endswith("(and at least 15 more)")


def test_a_prompt_is_required() -> None:
    with pytest.raises(ApiError) as caught:
        resolve(pb.GenerateRequest(), served_model(), "id", 0.0)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, "prompt")


def test_an_unknown_enum_value_is_refused() -> None:
    message = pb.GenerateRequest(text="x")
    message.stopping.context_overflow = 7  # type: ignore[assignment]
    with pytest.raises(ApiError) as caught:
        resolve(message, served_model(), "id", 0.0)
    assert caught.value.field == "stopping.context_overflow"


def test_an_unknown_model_is_not_found() -> None:
    error = refused('model: "other"')
    assert (error.code, error.reason) == (Code.NOT_FOUND, Reason.MODEL_NOT_FOUND)
    assert error.resource is not None
    assert error.resource.kind == "model"


def test_a_text_limit_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_prompt, "MAX_TEXT_BYTES", 6)
    resolved('text: "東京"')
    error = refused('text: "東京!"')
    assert (error.field, error.reason) == ("prompt.text", Reason.INVALID_FIELD)
    assert "東" not in error.message


def test_a_sliding_prompt_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_prompt, "MAX_PROMPT_TOKENS", 100)
    slide = " stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }"
    resolved(ids(100) + slide)
    assert refused(ids(101) + slide).field == "prompt.token_ids"
    resolved('text: "' + "~" * 99 + '"' + slide)
    assert refused('text: "' + "~" * 100 + '"' + slide).field == "prompt.text"


def test_text_gets_bos_and_no_eos() -> None:
    prompt_ids = resolved('text: "Hello world"').request.prompt_ids
    assert prompt_ids == (BOS, *tiny_tokenizer().encode("Hello world", add_bos=False))
    assert prompt_ids[-1] != EOS


def test_token_ids_are_used_as_given() -> None:
    assert resolved("token_ids { ids: [9, 8, 7] }").request.prompt_ids == (9, 8, 7)


def test_unset_fields_take_the_checkpoints_defaults() -> None:
    valid = resolved("")
    sampling, stop = valid.request.sampling, valid.request.stop
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 50, 0.9, 0.0)
    assert stop.eos_token_ids == {EOS}
    assert (stop.max_tokens, stop.min_tokens, stop.ignore_eos) == (31, 0, False)
    assert stop.context_overflow is ContextOverflow.STOP
    assert (valid.return_text, valid.return_token_ids) == (True, False)
    assert valid.request.arrival_time == 12.5


def test_given_fields_win_over_the_defaults_even_when_zero() -> None:
    text = "sampling { temperature: 0 top_k: 0 top_p: 1 min_p: 0.5 seed: 0 }"
    sampling = resolved(text).request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.0, 0, 1.0, 0.5)
    assert sampling.seed == 0


@pytest.mark.parametrize(
    ("given", "used"), [(0.0, 0.0), (1e-300, 0.01), (0.0099, 0.01), (0.01, 0.01), (0.02, 0.02)]
)
def test_tiny_temperatures_are_raised_and_zero_is_not(given: float, used: float) -> None:
    assert resolved(f"sampling {{ temperature: {given} }}").request.sampling.temperature == used


def test_a_drawn_seed_is_reported_and_differs() -> None:
    first, second = resolved(""), resolved("")
    assert first.seed == first.request.sampling.seed
    assert first.seed != second.seed
    assert resolved("sampling { seed: 7 }").seed == 7


@pytest.mark.parametrize("text", ["sampling { temperature: 0 }", "sampling { temperature: 0 seed: 7 }"])
def test_greedy_decoding_reports_no_seed(text: str) -> None:
    assert resolved(text).seed is None


def test_the_models_numbers_are_those_of_a_request_without_any() -> None:
    defaults = GenerationDefaults(0.5, 7, 0.9, min_p=0.1, repetition_penalty=1.05)
    model = served_model(generation_defaults=defaults)
    numbers = {name: getattr(defaults, name) for name in NEUTRAL}
    assert {name: getattr(resolved("", model).request.sampling, name) for name in NEUTRAL} == numbers
    asked = resolved("sampling { min_p: 0 repetition_penalty: 1 }", model).request.sampling
    assert (asked.min_p, asked.repetition_penalty, asked.top_k) == (0.0, 1.0, 7)
    neutral = resolved("", replace(model, generation_config=GenerationConfig.NONE)).request.sampling
    assert {name: getattr(neutral, name) for name in NEUTRAL} == dict(NEUTRAL)


def test_a_greedy_checkpoint_is_greedy() -> None:
    model = served_model(generation_defaults=GenerationDefaults(temperature=0.0))
    assert resolved("", model).seed is None


@pytest.mark.parametrize(
    ("text", "field"),
    [('text: "x"', "prompt.text"), (ids(1) + " response { return_text: true }", "response.return_text")],
)
def test_without_a_tokenizer_text_is_refused(text: str, field: str) -> None:
    error = refused(text, served_model(tokenizer=None))
    assert (error.code, error.reason, error.field) == (Code.FAILED_PRECONDITION, Reason.NO_TOKENIZER, field)


def test_a_tokenizer_larger_than_the_model_is_no_crash() -> None:
    small = served_model()
    config = type(small.config)(**{**small.config.to_dict(), "vocab_size": 100})
    error = refused('text: "東"', served_model(config=config, generation_defaults=GenerationDefaults()))
    assert (error.reason, error.field) == (Reason.TOKEN_ID_OUT_OF_RANGE, "prompt.text")


def test_scoring_alone_may_ask_for_no_tokens() -> None:
    valid = resolved("stopping { max_tokens: 0 } response { prompt_logprobs: 0 }")
    assert valid.request.stop.max_tokens == 0
    assert valid.request.returns.prompt_logprobs == 0
    scoring = "stopping { max_tokens: 0 } response { prompt_logprobs: 0 } "
    assert refused(scoring + "sampling { num_sequences: 2 }").field == "sampling.num_sequences"
    assert refused(scoring + "constraint { json_object {} }").field == "constraint"
    assert refused("stopping { max_tokens: 0 }").field == "stopping.max_tokens"


def test_nan_is_caught_by_every_float_check() -> None:
    message = pb.GenerateRequest(text="x")
    for name in ("temperature", "top_p", "min_p"):
        setattr(message.sampling, name, math.nan)
    with pytest.raises(ApiError) as caught:
        resolve(message, served_model(), "id", 0.0)
    assert len(caught.value.violations) == 3


UNEVEN = ((0, 1, 2, 3, 4), (0, 1, 3, 4), (0, 1, 3, 4, 5))


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("experts { allowed_experts: 7 }", "experts.allowed_experts[0]", "7 is not in [0, 6)"),
        ("experts { denied_experts: 6 }", "experts.denied_experts[0]", "6 is not in [0, 6)"),
        ("experts { allowed_experts: 2 }", "experts", "leaves no expert in layer 1"),
        ("experts { denied_experts: [0, 1, 2, 3, 4, 5] }", "experts", "leaves no expert"),
        ("experts { denied_experts: [0, 1, 3, 4] }", "experts", "leaves no expert in layer 1"),
        ("experts { experts_per_token: 6 }", "experts.experts_per_token", "6 is not in [1, 5]"),
    ],
)
def test_selections_are_among_the_experts_that_there_are_now(text: str, field: str, message: str) -> None:
    served = served_model(current_experts=lambda: UNEVEN)
    error = refused(text, served)
    assert (error.reason, error.field) == (Reason.INVALID_FIELD, field)
    assert error.violations[0].description == message


def test_an_id_that_is_retired_everywhere_is_named() -> None:
    served = served_model(current_experts=lambda: ((0, 2, 3),) * 3)
    error = refused("experts { allowed_experts: [0, 1] }", served)
    assert error.message == "experts.allowed_experts[1]: 1 is not an expert of this model"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("experts { denied_experts: 0 }", ExpertSelection((1, 2, 3, 4, 5))),
        ("experts { allowed_experts: [2, 3] }", ExpertSelection((2, 3))),
        ("experts { experts_per_token: 5 }", ExpertSelection(None, 5)),
        ("experts { allowed_experts: [0, 1, 2, 3, 4, 5] experts_per_token: 2 }", None),
    ],
)
def test_what_is_selected_is_by_id(text: str, expected: ExpertSelection | None) -> None:
    served = served_model(current_experts=lambda: UNEVEN)
    assert resolved(text, served).request.experts == expected


def rules_of(text: str) -> list[int]:
    """Ids that may be drawn first."""
    rules = resolved(text).request.token_rules
    assert rules is not None
    allowed = np.ones(320, np.bool_)
    TokenMask(rules, 320).apply(allowed, [5], 1)
    return [int(token_id) for token_id in np.flatnonzero(allowed)]


def test_allowed_tokens() -> None:
    assert resolved("").request.token_rules is None
    assert rules_of("sampling { allowed_token_ids: [7, 319, 7] }") == [7, 319]


def test_bad_words_are_forbidden_as_they_stand_and_behind_a_space() -> None:
    tokenizer = tiny_tokenizer()
    (bare,), spaced = tokenizer.encode("a", add_bos=False), tokenizer.encode(" a", add_bos=False)
    for word in ("a", " a"):
        rules = resolved(f'sampling {{ bad_words: "{word}" }}').request.token_rules
        assert rules is not None
        allowed = np.ones(320, np.bool_)
        TokenMask(rules, 320).apply(allowed, [5, *spaced[:-1]], 1)
        assert not allowed[bare]
        assert not allowed[spaced[-1]]


def test_nothing_left_to_draw_is_known_before_anything_runs() -> None:
    (token_id,) = tiny_tokenizer().encode("a", add_bos=False)
    error = refused(f'sampling {{ allowed_token_ids: {token_id} bad_words: "a" }}')
    assert (error.reason, str(error)) == (
        Reason.INVALID_FIELD,
        "sampling.allowed_token_ids: leaves no token to draw beside bad_words",
    )


def test_bad_words_need_a_tokenizer() -> None:
    error = refused('sampling { bad_words: "a" }', served_model(tokenizer=None))
    assert error.reason is Reason.NO_TOKENIZER


CHAT = 'chat { messages { role: "user" content: "x" } '


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (CHAT + "add_generation_prompt: true continue_final_message: true }", "continue_final_message"),
        (CHAT + "template_kwargs: '[]' }", "template_kwargs"),
        (CHAT + "template_kwargs: '{' }", "template_kwargs"),
        (CHAT + "template_kwargs: '" + "[" * 60_000 + "' }", "template_kwargs"),
        (CHAT + "template_kwargs: '" + " " * 65_537 + "' }", "template_kwargs"),
        (CHAT + """template_kwargs: '{"messages": []}' }""", "template_kwargs"),
        (CHAT + """template_kwargs: '{"bos_token": 1}' }""", "template_kwargs"),
    ],
)
def test_what_a_template_cannot_be_told(text: str, field: str) -> None:
    error = refused(text)
    assert error.reason is Reason.INVALID_FIELD
    assert str(error).startswith(f"prompt.chat.{field}: ")


def test_special_tokens_are_not_added_to_a_conversation() -> None:
    error = refused(CHAT + "} add_special_tokens: true")
    assert str(error).startswith("add_special_tokens: ")


def test_only_json_is_compact() -> None:
    for text in ("compact_json: true", 'regex: "a" compact_json: true'):
        assert str(refused(f"constraint {{ {text} }}")).startswith("constraint.compact_json: ")
