"""The table of fields has every field that others document, and agrees with the code and the page."""

from collections.abc import Iterable
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat

from coordinator.api.http import chat as http_chat
from coordinator.api.http import completions as http_completions
from coordinator.api.http.answer import StreamOptions
from coordinator.api.http.fields import BUILT, HARMLESS, REFUSED, Route, Verdict, is_neutral, verdict
from coordinator.api.http.json import Body
from tests.coordinator.api.fakes import served_model
from tests.coordinator.api.field_page import rows, rows_of_page


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What vLLM's protocol classes for both routes have beside OpenAI's, as of November 2026.
VLLM_ON_BOTH = words("""
    use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
    include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
    truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs logprob_token_ids bad_words
    add_special_tokens response_format structured_outputs priority request_id session_id
    return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets
    return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
    thinking_token_budget stream_interval echo
    guided_json guided_regex guided_choice guided_grammar structural_tag guided_decoding_backend
    guided_whitespace_pattern logits_processors best_of early_stopping
""")
VLLM_COMPLETIONS = VLLM_ON_BOTH | {"prompt_embeds", "suffix"}
VLLM_CHAT = VLLM_ON_BOTH | words("""
    add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
    chat_template_content_format media_io_kwargs mm_processor_kwargs return_prompt_text include_reasoning
    reasoning_effort parallel_tool_calls
""")
# What SGLang's own route, transformers' generate and others call what changes an answer.
OTHERS = words("""
    return_logprob top_logprobs_num token_ids_logprob stop_words stop_strings beam_width num_beam_groups
    diversity_penalty penalty_alpha epsilon_cutoff eta_cutoff guidance_scale negative_prompt suppress_tokens
    bad_words_ids banned_tokens banned_strings ban_eos_token smoothing_factor temperature_last
    input previous_response_id conversation truncation lora_name lora_request adapter
""")
# Of the list: what never causes an error.
NEVER_AN_ERROR = words(
    "reasoning_effort user metadata store service_tier prompt_cache_key safety_identifier reasoning thinking"
)


def documented(*kinds: Any) -> set[str]:
    return {name for kind in kinds for name in get_type_hints(kind)}


OPENAI_COMPLETIONS = documented(
    completions.CompletionCreateParamsNonStreaming, completions.CompletionCreateParamsStreaming
)
OPENAI_CHAT = documented(chat.CompletionCreateParamsNonStreaming, chat.CompletionCreateParamsStreaming)


@pytest.mark.parametrize(
    ("route", "names"),
    [
        (Route.COMPLETIONS, OPENAI_COMPLETIONS),
        (Route.CHAT, OPENAI_CHAT),
        (Route.COMPLETIONS, VLLM_COMPLETIONS),
        (Route.CHAT, VLLM_CHAT),
        (Route.COMPLETIONS, OTHERS),
    ],
    ids=["openai completions", "openai chat", "vllm completions", "vllm chat", "others"],
)
def test_every_documented_field_has_a_verdict(route: Route, names: Iterable[str]) -> None:
    names = sorted(names)
    assert len(names) > 15
    assert [name for name in names if verdict(name, route) is None] == []


def test_what_the_code_reads_is_what_the_table_calls_built() -> None:
    body = Body({"prompt": "x"})
    http_completions.parse(body, served_model(), StreamOptions())
    of_the_app = {"stream", "stream_options", "request_id"}
    assert body.asked_for | of_the_app == BUILT[Route.COMPLETIONS]
    body = Body({"messages": [{"role": "user", "content": "x"}]})
    http_chat.parse(body, StreamOptions())
    assert body.asked_for | of_the_app == BUILT[Route.CHAT]


def test_a_field_has_one_verdict() -> None:
    built = set().union(*BUILT.values())
    assert not REFUSED.keys() & HARMLESS
    twice = sorted(built & (REFUSED.keys() | HARMLESS))
    assert twice == [], "built now? then delete their rows in coordinator/api/http/fields.py"


@pytest.mark.parametrize("route", [Route.COMPLETIONS, Route.CHAT])
def test_what_says_nothing_about_the_answer_is_harmless(route: Route) -> None:
    never = [name for name in NEVER_AN_ERROR if name not in BUILT[route]]
    assert {name: verdict(name, route) for name in never} == dict.fromkeys(never, Verdict.HARMLESS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_beam_search", False),
        ("best_of", 1),
        ("n_probs", 0),
        ("suffix", ""),
        ("prompt_embeds", None),
        ("modalities", ["text"]),
        ("length_penalty", 1.0),
        ("truncation_side", "left"),
        ("top_n_sigma", -1),
        ("do_sample", True),
    ],
)
def test_neutral_values(name: str, value: object) -> None:
    assert is_neutral(REFUSED[name], value)


@pytest.mark.parametrize(
    ("name", "value"), [("do_sample", False), ("web_search_options", {}), ("top_n_sigma", 1)]
)
def test_values_that_only_look_neutral(name: str, value: object) -> None:
    assert not is_neutral(REFUSED[name], value)


def test_the_page_is_the_table() -> None:
    assert rows_of_page() == rows(), "python -m tests.coordinator.api.field_page writes them anew"
