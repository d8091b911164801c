"""The table of request fields: what each does here, for all that servers of OpenAI's API give a meaning.

A field is built; or refused by name unless its value changes nothing; or harmless, which no value makes an
error; or unknown. The page is docs/fields.md. Data, and the look-ups of one name; knows no request.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from coordinator.api.validation.sampling_numbers import NUMBERS


class Route(StrEnum):
    """The routes that take a body."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


class Verdict(StrEnum):
    """What is done about a field."""

    BUILT = "built"
    REFUSED = "refused"
    HARMLESS = "harmless"


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that changes the answer elsewhere and is not to be had here. `instead` ends a sentence and says
    what to do. `neutral` values change nothing and are taken."""

    instead: str = ""
    neutral: tuple[object, ...] = ()


# 0 is False.
EMPTY: tuple[object, ...] = (False, "", [], {})

_BUILT_ON_BOTH = frozenset(
    # OpenAI's and vLLM's numbers.
    {each.name for each in NUMBERS}
    # OpenAI's.
    | {"model", "max_tokens", "logit_bias"}
    | {"n", "seed", "stop", "logprobs", "stream", "stream_options", "response_format"}
    # Beside them, under vLLM's names where it has them.
    | {"min_tokens", "ignore_eos", "stop_token_ids"}
    | {"include_stop_str_in_output", "truncate_prompt_tokens", "add_special_tokens", "skip_special_tokens"}
    | {"prompt_logprobs", "return_token_ids", "request_id", "stream_interval", "structured_outputs"}
    | {"guided_json", "guided_regex", "guided_choice", "guided_grammar"}
    # llama.cpp's and SGLang's.
    | {"json_schema", "grammar", "regex", "ebnf"}
    # vLLM's, of what may be drawn and how JSON is written.
    | {"allowed_token_ids", "bad_words", "disable_any_whitespace"}
    # Our own.
    | {"time_limit_ms", "context_overflow", "return_routed_experts", "experts"}
)
# How hard to think: variables of the template, and of no consequence where there is none.
OF_THINKING = frozenset({"reasoning_effort", "enable_thinking", "thinking_budget", "thinking_token_budget"})
_OF_CONVERSATIONS = frozenset(
    {"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"} | OF_THINKING
)
_OF_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"})
BUILT: Mapping[Route, frozenset[str]] = {
    Route.COMPLETIONS: _BUILT_ON_BOTH | {"prompt", "echo"},
    Route.CHAT: _BUILT_ON_BOTH | _OF_CONVERSATIONS | _OF_TOOLS | {"max_completion_tokens", "top_logprobs"},
    Route.TOKENIZE: _OF_CONVERSATIONS | _OF_TOOLS | {"model", "prompt", "add_special_tokens"},
    Route.DETOKENIZE: frozenset({"model", "tokens", "skip_special_tokens"}),
}
_GENERATING = (Route.COMPLETIONS, Route.CHAT)

HARMLESS = frozenset(
    # The caller, what a request is called and paid by, what is kept of it.
    {"user", "metadata", "store", "service_tier", "safety_identifier", "session_id", "rid", "tags"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "usage", "trace"}
    | {"litellm_metadata", "litellm_session_id", "litellm_trace_id", "litellm_call_id"}
    # How thoughts are shown: apart from what is said, always.
    | {"reasoning", "thinking", "think"}
    | {"include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format"}
    | {"reasoning_in_content", "thinking_forced_open", "prompt_mode"}
    # How it is computed, not what.
    | {"cache_prompt", "id_slot", "slot_id", "keep_alive", "data_parallel_rank", "guided_decoding_backend"}
    | {
        "prediction",
        "speculative.n_max",
        "speculative.n_min",
        "speculative.p_min",
        "drop_params",
        "return_mm_kwargs",
    }
    # How something works that is refused itself, or that only tools have.
    | {"dynatemp_exponent", "mirostat_tau", "mirostat_eta", "xtc_threshold", "dry_base", "parse_tool_calls"}
    | {"dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"}
    # /tokenize always returns them.
    | {"return_token_strs"}
    # There are no spaces between a byte-level tokenizer's special tokens.
    | {"spaces_between_special_tokens"}
)

_IN_MESSAGES = "put it into the messages"
_NO_MEDIA = "this model reads and writes text only"
_NO_BEAMS = "there is no beam search"
_NO_ADAPTERS = "serve the merged model"
_OFF_NUMBERS = (0, -1)

REFUSED: Mapping[str, Refused] = {
    # OpenAI.
    "suffix": Refused("put it into the prompt"),
    "best_of": Refused("give n, and choose by logprobs", (1,)),
    "modalities": Refused(_NO_MEDIA, (["text"],)),
    "audio": Refused(_NO_MEDIA),
    "web_search_options": Refused(_IN_MESSAGES, (None,)),
    "moderation": Refused("have the answer moderated elsewhere", (None,)),
    "verbosity": Refused("say in the messages how long the answer may be", ("medium",)),
    # vLLM.
    "use_beam_search": Refused("draw n sequences and choose by their logprobs"),
    "length_penalty": Refused(_NO_BEAMS, (1,)),
    "early_stopping": Refused(_NO_BEAMS),
    "watermarking": Refused(),
    "truncation_side": Refused("truncate_prompt_tokens keeps the end of the prompt", ("left",)),
    "logprob_token_ids": Refused("use logprobs, which gives the 20 best", ([],)),
    "prompt_embeds": Refused("give the prompt as text or as token ids"),
    "chat_template": Refused("the template is the server's: serve --chat-template"),
    "chat_template_content_format": Refused("parts are joined to one text", ("auto", "string")),
    "documents": Refused("give them in chat_template_kwargs"),
    "mm_processor_kwargs": Refused(_NO_MEDIA),
    "media_io_kwargs": Refused(_NO_MEDIA),
    "priority": Refused("requests are served in the order in which they come", (0,)),
    "cache_salt": Refused("prompts are cached apart for each API key"),
    "return_tokens_as_token_ids": Refused("use return_token_ids"),
    "return_token_offsets": Refused("use logprobs, whose text_offset completions have"),
    "return_prompt_text": Refused("use return_token_ids and /detokenize"),
    "routed_experts_prompt_start": Refused("return_routed_experts gives the whole prompt's"),
    "kv_transfer_params": Refused(),
    "ec_transfer_params": Refused(),
    "vllm_xargs": Refused(),
    "repetition_detection": Refused("use frequency_penalty", (None,)),
    "logits_processors": Refused("use logit_bias"),
    "structural_tag": Refused("use structured_outputs.grammar"),
    "whitespace_pattern": Refused("use structured_outputs.disable_any_whitespace"),
    "guided_whitespace_pattern": Refused("use structured_outputs.disable_any_whitespace"),
    # llama.cpp.
    "n_predict": Refused("use max_tokens", (-1,)),
    "n_keep": Refused("use context_overflow", (0,)),
    "n_discard": Refused("use context_overflow", (0,)),
    "n_indent": Refused("use structured_outputs.regex", (0,)),
    "n_probs": Refused("use logprobs", (0,)),
    "min_keep": Refused("use top_k", (0,)),
    "repeat_penalty": Refused("use repetition_penalty", (1,)),
    "repeat_last_n": Refused("repetition_penalty looks at all tokens", (-1,)),
    "penalize_nl": Refused("use logit_bias"),
    "dynatemp_range": Refused("use temperature", (0,)),
    "mirostat": Refused("use top_p or min_p", (0,)),
    "typical_p": Refused("use top_p or min_p", (1,)),
    "tfs_z": Refused("use top_p or min_p", (1,)),
    "top_a": Refused("use min_p", (0,)),
    "top_n_sigma": Refused("use min_p", _OFF_NUMBERS),
    "xtc_probability": Refused("use temperature", (0,)),
    "dry_multiplier": Refused("use repetition_penalty", (0,)),
    "samplers": Refused("filters are applied in a fixed order"),
    "adaptive_target": Refused("use min_p", (-1,)),
    "adaptive_decay": Refused("use min_p", (-1,)),
    "post_sampling_probs": Refused("logprobs are those of the raw distribution"),
    "grammar_lazy": Refused("a grammar holds from the first token"),
    "grammar_triggers": Refused("a grammar holds from the first token"),
    "t_max_predict_ms": Refused("use time_limit_ms", _OFF_NUMBERS),
    "t_max_prompt_ms": Refused("use time_limit_ms", _OFF_NUMBERS),
    "image_data": Refused(_NO_MEDIA),
    "multimodal_data": Refused(_NO_MEDIA),
    "lora": Refused(_NO_ADAPTERS),
    "response_fields": Refused("the answer has all of its fields"),
    "return_tokens": Refused("use return_token_ids"),
    "return_progress": Refused("see the server's metrics"),
    "timings_per_token": Refused("see the server's metrics"),
    "input_prefix": Refused("put it into the prompt"),
    "input_suffix": Refused("put it into the prompt"),
    "input_extra": Refused("put it into the prompt"),
    # SGLang.
    "stop_regex": Refused("use stop, or structured_outputs.regex"),
    "no_stop_trim": Refused("use include_stop_str_in_output"),
    "min_new_tokens": Refused("use min_tokens", (0,)),
    "max_new_tokens": Refused("use max_tokens"),
    "sampling_seed": Refused("use seed", (None,)),
    "sampling_params": Refused("its fields belong into the body itself"),
    "input_ids": Refused("give prompt as token ids"),
    "lora_path": Refused(_NO_ADAPTERS),
    "session_params": Refused(_IN_MESSAGES),
    "return_hidden_states": Refused(),
    "return_meta_info": Refused(),
    "return_cached_tokens_details": Refused("see usage.prompt_tokens_details"),
    "return_prompt_token_ids": Refused("use return_token_ids"),
    "logprob_start_len": Refused("use prompt_logprobs", (-1,)),
    "custom_logit_processor": Refused("use logit_bias"),
    "custom_params": Refused(),
    "extra_key": Refused("prompts are cached apart for each API key"),
    "bootstrap_host": Refused(),
    "bootstrap_port": Refused(),
    "bootstrap_room": Refused(),
    "task": Refused(_IN_MESSAGES),
    "text": Refused("use prompt"),
    "return_logprob": Refused("use logprobs"),
    "top_logprobs_num": Refused("use logprobs", (0,)),
    "token_ids_logprob": Refused("use logprobs, which gives the 20 best"),
    "return_text_in_logprobs": Refused("use logprobs"),
    "audio_data": Refused(_NO_MEDIA),
    "video_data": Refused(_NO_MEDIA),
    # TensorRT-LLM.
    "beam_width": Refused(_NO_BEAMS, (1,)),
    "embedding_bias": Refused("use logit_bias"),
    "stop_words": Refused("use stop"),
    # Text Generation Inference, and Hugging Face's own names.
    "inputs": Refused("use prompt or messages"),
    "parameters": Refused("its fields belong into the body itself"),
    "do_sample": Refused("use temperature 0", (True,)),
    "max_length": Refused("use max_tokens"),
    "num_beams": Refused(_NO_BEAMS, (1,)),
    "num_beam_groups": Refused(_NO_BEAMS, (1,)),
    "diversity_penalty": Refused(_NO_BEAMS),
    "penalty_alpha": Refused("use top_p or min_p"),
    "epsilon_cutoff": Refused("use min_p"),
    "eta_cutoff": Refused("use min_p"),
    "guidance_scale": Refused("there is no second prompt to guide by", (1,)),
    "encoder_repetition_penalty": Refused("use repetition_penalty", (1,)),
    "suppress_tokens": Refused("use logit_bias"),
    "begin_suppress_tokens": Refused("use logit_bias"),
    "bad_words_ids": Refused("use bad_words"),
    "forced_bos_token_id": Refused("put it into the prompt"),
    "forced_eos_token_id": Refused("use structured_outputs.regex"),
    "stop_strings": Refused("use stop"),
    "no_repeat_ngram_size": Refused("use frequency_penalty", (0,)),
    "num_return_sequences": Refused("use n", (1,)),
    "top_n_tokens": Refused("use logprobs", (0,)),
    "details": Refused("use logprobs"),
    "decoder_input_details": Refused("use prompt_logprobs"),
    "return_full_text": Refused("use echo"),
    "watermark": Refused(),
    "truncate": Refused("use truncate_prompt_tokens"),
    "adapter_id": Refused(_NO_ADAPTERS),
    "guideline": Refused(_IN_MESSAGES),
    "tool_prompt": Refused(_IN_MESSAGES),
    # Ollama.
    "options": Refused("its fields belong into the body itself"),
    "format": Refused("use response_format"),
    "num_predict": Refused("use max_tokens", (-1,)),
    "num_ctx": Refused("the context is the model's", (0,)),
    "system": Refused("send a message of role system"),
    "template": Refused("the template is the server's: serve --chat-template"),
    "context": Refused(_IN_MESSAGES),
    "raw": Refused("use /v1/completions"),
    "images": Refused(_NO_MEDIA),
    # text-generation-webui, TabbyAPI and others of their kind.
    "negative_prompt": Refused("there is no second prompt to guide by"),
    "custom_token_bans": Refused("use logit_bias"),
    "banned_tokens": Refused("use logit_bias"),
    "banned_strings": Refused("use bad_words"),
    "ban_eos_token": Refused("use min_tokens"),
    "add_bos_token": Refused("use add_special_tokens", (True,)),
    "smoothing_factor": Refused("use temperature", (0,)),
    "dynamic_temperature": Refused("use temperature"),
    "temperature_last": Refused("filters are applied in a fixed order"),
    "sampler_priority": Refused("filters are applied in a fixed order"),
    "instruction_template": Refused("the template is the server's: serve --chat-template"),
    # OpenAI's other routes.
    "input": Refused("use prompt or messages"),
    "previous_response_id": Refused(_IN_MESSAGES),
    "conversation": Refused(_IN_MESSAGES),
    "truncation": Refused("use truncate_prompt_tokens", ("disabled",)),
    # Adapters, by all names that there are.
    "lora_name": Refused(_NO_ADAPTERS),
    "lora_request": Refused(_NO_ADAPTERS),
    "lora_adapter": Refused(_NO_ADAPTERS),
    "adapter": Refused(_NO_ADAPTERS),
    # LiteLLM, OpenRouter and other hosts.
    "extra_body": Refused("its fields belong into the body itself"),
    "extra_headers": Refused("send them as headers"),
    "timeout": Refused("use time_limit_ms", (0,)),
    "fallbacks": Refused("ask another server yourself"),
    "models": Refused("use model"),
    "guardrails": Refused("guard the answer elsewhere"),
    "mock_response": Refused(),
    "plugins": Refused(),
    "transforms": Refused("use truncate_prompt_tokens"),
    "provider": Refused("there is one provider here"),
    "stop_sequences": Refused("use stop"),
    "max_output_tokens": Refused("use max_tokens"),
    "max_tokens_to_sample": Refused("use max_tokens"),
    "random_seed": Refused("use seed", (None,)),
    "safe_prompt": Refused("put it into a message of role system"),
    "instructions": Refused("send a message of role system"),
    "prompt_truncate_len": Refused("use truncate_prompt_tokens", (0,)),
    "context_length_exceeded_behavior": Refused("use context_overflow", (None,)),
    "echo_last": Refused("use echo", (0,)),
}


def verdict(name: str, route: Route) -> Verdict | None:
    """None for a name that no server gives a meaning. A field of the other route is refused."""
    if name in BUILT[route]:
        return Verdict.BUILT
    if name in HARMLESS or name in OF_THINKING:
        return Verdict.HARMLESS
    return Verdict.REFUSED if refusal(name, route) is not None else None


def refusal(name: str, route: Route) -> Refused | None:
    """Why a field that is not built on this route is refused, if it is."""
    found = REFUSED.get(name)
    if found is not None:
        return found
    if route in _GENERATING:
        for other in _GENERATING:
            if name in BUILT[other]:
                return Refused(f"it is a field of {other}")
    return None


def is_neutral(refused: Refused, value: object) -> bool:
    """Whether a value asks for nothing. Without values of its own, a field has the empty ones."""
    return value is None or value in (refused.neutral or EMPTY)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant; empty for none."""
    found = get_close_matches(name[:80].lower(), sorted(known), 1)
    return found[0] if found else ""
