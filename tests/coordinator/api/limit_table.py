"""Every limit of a request at its edge and one past it, for both fronts.

Each entry: what is limited, then the request at the edge and past it in protobuf's text format, the same as
JSON (None where HTTP has no such field), and the fields that an error must name. The served model is the
tests' own: context 32, vocabulary 320, 5 experts, at most 40 output tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Limit:
    name: str
    edge: str
    past: str
    edge_json: Json
    past_json: Json
    field: str
    param: str = ""


def _number(group: str, name: str, edge: float, past: float, param: str = "") -> Limit:
    param = param or name
    return Limit(
        f"{name} {past}",
        f"{group} {{ {name}: {edge} }}",
        f"{group} {{ {name}: {past} }}",
        {param: edge},
        {param: past},
        f"{group}.{name}",
        param,
    )


def _repeated(name: str, text: str, json: list[Any], count: int, param: str) -> Limit:
    return Limit(
        name,
        f"stopping {{ {text * count} }}",
        f"stopping {{ {text * (count + 1)} }}",
        {param: json * count},
        {param: json * (count + 1)},
        f"stopping.{name}",
        param,
    )


LIMITS = (
    _number("sampling", "temperature", 2, 2.0001),
    _number("sampling", "temperature", 0, -0.1),
    _number("sampling", "top_p", 1, 1.0001),
    _number("sampling", "top_p", 1e-9, 0),
    _number("sampling", "top_k", 320, 321),
    _number("sampling", "min_p", 1, 1.01),
    _number("sampling", "presence_penalty", 2, 2.01),
    _number("sampling", "presence_penalty", -2, -2.01),
    _number("sampling", "frequency_penalty", 2, 2.01),
    _number("sampling", "frequency_penalty", -2, -2.01),
    _number("sampling", "repetition_penalty", 2, 2.01),
    _number("sampling", "repetition_penalty", 0.01, 0),
    _number("sampling", "num_sequences", 8, 9, "n"),
    _number("sampling", "num_sequences", 1, 0, "n"),
    _number("stopping", "max_tokens", 31, 41),
    _number("stopping", "max_tokens", 1, 0),
    _number("stopping", "min_tokens", 16, 41),
    _number("response", "logprobs", 20, 21),
    _number("response", "prompt_logprobs", 20, 21),
    _repeated("stop_sequences", 'stop_sequences: "a" ', ["a"], 16, "stop"),
    _repeated("stop_token_ids", "stop_token_ids: 9 ", [9], 64, "stop_token_ids"),
    Limit(
        "stop sequence bytes",
        f'stopping {{ stop_sequences: "{"é" * 128}" }}',
        f'stopping {{ stop_sequences: "{"é" * 128}a" }}',
        {"stop": "é" * 128},
        {"stop": "é" * 128 + "a"},
        "stopping.stop_sequences[0]",
        "stop[0]",
    ),
    Limit(
        "stop token id",
        "stopping { stop_token_ids: 319 }",
        "stopping { stop_token_ids: 320 }",
        {"stop_token_ids": [319]},
        {"stop_token_ids": [320]},
        "stopping.stop_token_ids[0]",
        "stop_token_ids[0]",
    ),
    Limit(
        "time limit, least",
        "stopping { time_limit { nanos: 1000000 } }",
        "stopping { time_limit { nanos: 999999 } }",
        {"time_limit_ms": 1},
        {"time_limit_ms": 0},
        "stopping.time_limit",
        "time_limit_ms",
    ),
    Limit(
        "time limit, most",
        "stopping { time_limit { seconds: 3600 } }",
        "stopping { time_limit { seconds: 3600 nanos: 1 } }",
        {"time_limit_ms": 3_600_000},
        {"time_limit_ms": 3_600_001},
        "stopping.time_limit",
        "time_limit_ms",
    ),
    Limit(
        "bias",
        "sampling { logit_bias { key: 319 value: 100 } }",
        "sampling { logit_bias { key: 319 value: 100.5 } }",
        {"logit_bias": {"319": 100}},
        {"logit_bias": {"319": 100.5}},
        "sampling.logit_bias[319]",
        "logit_bias[319]",
    ),
    Limit(
        "biased token",
        "sampling { logit_bias { key: 319 value: 1 } }",
        "sampling { logit_bias { key: 320 value: 1 } }",
        {"logit_bias": {"319": 1}},
        {"logit_bias": {"320": 1}},
        "sampling.logit_bias[320]",
        "logit_bias[320]",
    ),
    Limit(
        "allowed token",
        "sampling { allowed_token_ids: 319 }",
        "sampling { allowed_token_ids: 320 }",
        {"allowed_token_ids": [319]},
        {"allowed_token_ids": [320]},
        "sampling.allowed_token_ids[0]",
        "allowed_token_ids[0]",
    ),
    Limit(
        "bad words",
        "sampling { " + 'bad_words: "a" ' * 128 + "}",
        "sampling { " + 'bad_words: "a" ' * 129 + "}",
        {"bad_words": ["a"] * 128},
        {"bad_words": ["a"] * 129},
        "sampling.bad_words",
        "bad_words",
    ),
    Limit(
        "bad word's bytes",
        f'sampling {{ bad_words: "{"é" * 128}" }}',
        f'sampling {{ bad_words: "{"é" * 128}a" }}',
        {"bad_words": ["é" * 128]},
        {"bad_words": ["é" * 128 + "a"]},
        "sampling.bad_words[0]",
        "bad_words[0]",
    ),
    Limit(
        "messages' tokens",
        "response { min_tokens_per_message: 64 }",
        "response { min_tokens_per_message: 65 }",
        {"stream_interval": 64},
        {"stream_interval": 65},
        "response.min_tokens_per_message",
        "stream_interval",
    ),
    Limit(
        "truncation",
        "truncate_prompt_tokens: 31",
        "truncate_prompt_tokens: 32",
        {"truncate_prompt_tokens": 31},
        {"truncate_prompt_tokens": 32},
        "truncate_prompt_tokens",
        "truncate_prompt_tokens",
    ),
    Limit(
        "expert",
        "experts { allowed_experts: 4 }",
        "experts { allowed_experts: 5 }",
        {"experts": {"allowed_experts": [4]}},
        {"experts": {"allowed_experts": [5]}},
        "experts.allowed_experts[0]",
        "experts.allowed_experts[0]",
    ),
    Limit(
        "experts that are left",
        "experts { denied_experts: [0, 1, 2, 3] }",
        "experts { denied_experts: [0, 1, 2, 3, 4] }",
        {"experts": {"denied_experts": [0, 1, 2, 3]}},
        {"experts": {"denied_experts": [0, 1, 2, 3, 4]}},
        "experts",
        "experts",
    ),
    Limit(
        "experts per token",
        "experts { experts_per_token: 5 }",
        "experts { experts_per_token: 6 }",
        {"experts": {"experts_per_token": 5}},
        {"experts": {"experts_per_token": 6}},
        "experts.experts_per_token",
        "experts.experts_per_token",
    ),
    Limit(
        "prompt",
        "token_ids { " + "ids: 5 " * 31 + "}",
        "token_ids { " + "ids: 5 " * 32 + "}",
        {"prompt": [5] * 31, "max_tokens": 1},
        {"prompt": [5] * 32, "max_tokens": 1},
        "prompt.token_ids",
        "prompt",
    ),
    Limit(
        "prompt and output",
        "token_ids { ids: [5, 5] } stopping { max_tokens: 30 }",
        "token_ids { ids: [5, 5] } stopping { max_tokens: 31 }",
        {"prompt": [5, 5], "max_tokens": 30},
        {"prompt": [5, 5], "max_tokens": 31},
        "stopping.max_tokens",
        "max_tokens",
    ),
    Limit(
        "request id",
        f'request_id: "{"a" * 128}"',
        f'request_id: "{"a" * 129}"',
        {"request_id": "a" * 128},
        {"request_id": "a" * 129},
        "request_id",
        "request_id",
    ),
    Limit(
        "stop sequence bytes, least",
        'stopping { stop_sequences: "a" }',
        'stopping { stop_sequences: "" }',
        {"stop": "a"},
        {"stop": ""},
        "stopping.stop_sequences[0]",
        "stop[0]",
    ),
    Limit(
        "bias, least",
        "sampling { logit_bias { key: 319 value: -100 } }",
        "sampling { logit_bias { key: 319 value: -100.5 } }",
        {"logit_bias": {"319": -100}},
        {"logit_bias": {"319": -100.5}},
        "sampling.logit_bias[319]",
        "logit_bias[319]",
    ),
    Limit(
        "min_tokens of max_tokens",
        "stopping { max_tokens: 3 min_tokens: 3 }",
        "stopping { max_tokens: 3 min_tokens: 4 }",
        {"max_tokens": 3, "min_tokens": 3},
        {"max_tokens": 3, "min_tokens": 4},
        "stopping.min_tokens",
        "min_tokens",
    ),
    Limit(
        "max_tokens where the context slides",
        "stopping { max_tokens: 40 context_overflow: CONTEXT_OVERFLOW_SLIDE }",
        "stopping { max_tokens: 41 context_overflow: CONTEXT_OVERFLOW_SLIDE }",
        {"max_tokens": 40, "context_overflow": "slide"},
        {"max_tokens": 41, "context_overflow": "slide"},
        "stopping.max_tokens",
        "max_tokens",
    ),
    Limit(
        "max_tokens of a request that scores",
        "stopping { max_tokens: 0 } response { prompt_logprobs: 0 }",
        "stopping { max_tokens: 0 } response { logprobs: 0 }",
        {"max_tokens": 0, "prompt_logprobs": 0},
        {"max_tokens": 0, "logprobs": 0},
        "stopping.max_tokens",
        "max_tokens",
    ),
    Limit(
        "greedy sequences",
        "sampling { temperature: 0 num_sequences: 1 }",
        "sampling { temperature: 0 num_sequences: 2 }",
        {"temperature": 0, "n": 1},
        {"temperature": 0, "n": 2},
        "sampling.num_sequences",
        "n",
    ),
    Limit(
        "messages' tokens, least",
        "response { min_tokens_per_message: 1 }",
        "response { min_tokens_per_message: 0 }",
        None,
        None,
        "response.min_tokens_per_message",
    ),
    Limit(
        "truncation, least",
        "truncate_prompt_tokens: 1",
        "truncate_prompt_tokens: 0",
        {"truncate_prompt_tokens": 1},
        {"truncate_prompt_tokens": 0},
        "truncate_prompt_tokens",
        "truncate_prompt_tokens",
    ),
    Limit(
        "expert denied",
        "experts { denied_experts: 4 }",
        "experts { denied_experts: 5 }",
        {"experts": {"denied_experts": [4]}},
        {"experts": {"denied_experts": [5]}},
        "experts.denied_experts[0]",
        "experts.denied_experts[0]",
    ),
    Limit(
        "experts per token, least",
        "experts { experts_per_token: 1 }",
        "experts { experts_per_token: 0 }",
        {"experts": {"experts_per_token": 1}},
        {"experts": {"experts_per_token": 0}},
        "experts.experts_per_token",
        "experts.experts_per_token",
    ),
    Limit(
        "prompt, least",
        "token_ids { ids: 5 }",
        "token_ids { }",
        {"prompt": [5]},
        {"prompt": []},
        "prompt.token_ids",
        "prompt",
    ),
    Limit(
        "text, least",
        'text: "a"',
        'text: ""',
        {"prompt": "a"},
        {"prompt": ""},
        "prompt.text",
        "prompt",
    ),
    Limit(
        "prompt token",
        "token_ids { ids: [5, 319] }",
        "token_ids { ids: [5, 320] }",
        {"prompt": [5, 319]},
        {"prompt": [5, 320]},
        "prompt.token_ids[1]",
        "prompt[1]",
    ),
)
