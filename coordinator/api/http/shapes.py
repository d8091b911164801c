"""OpenAI's shapes: logprobs, usage, finish reasons. From our messages to plain values; no HTTP."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from coordinator.api.http.answer import Wants
from expertmesh.v1 import generation_pb2 as pb

# JSON has no infinity; vLLM's clients know this number.
LEAST_LOGPROB = -9999.0

# Items that are written at once: no other thread runs meanwhile.
_PIECE = 4096

_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TIME_LIMIT: "length",
    pb.FINISH_REASON_ABORTED: "abort",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def finish(reason: pb.FinishReason, match: pb.StopMatch | None, *, is_old: bool = False) -> dict[str, Any]:
    """`finish_reason`, and vLLM's `stop_reason`: what the output stopped at, null for EOS. `is_old`: as
    OpenAI's first form of tools has it."""
    if is_old and reason == pb.FINISH_REASON_TOOL_CALLS:
        return {"finish_reason": "function_call", "stop_reason": None}
    stop_reason: str | int | None = None
    if reason == pb.FINISH_REASON_TIME_LIMIT:
        stop_reason = "time_limit"
    elif match is not None and match.WhichOneof("match") == "stop_sequence":
        stop_reason = match.stop_sequence
    elif match is not None and match.WhichOneof("match") == "stop_token_id":
        stop_reason = match.stop_token_id
    return {"finish_reason": _FINISH_REASONS.get(reason, "stop"), "stop_reason": stop_reason}


def usage(parts: Iterable[pb.Usage]) -> dict[str, Any]:
    """Of all prompts of a request together."""
    parts = list(parts)
    prompt_tokens = sum(part.prompt_tokens for part in parts)
    completion_tokens = sum(part.completion_tokens for part in parts)
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(part.cached_prompt_tokens for part in parts)},
    }
    reasoning = sum(part.reasoning_tokens for part in parts)
    if reasoning:
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return found


def clamped(logprob: float) -> float:
    return LEAST_LOGPROB if math.isinf(logprob) or math.isnan(logprob) else logprob


def token_text(token_bytes: bytes) -> str:
    """A token on its own, which may be part of a character."""
    return token_bytes.decode(errors="replace")


def tokenized(found: pb.TokenizeResponse, more: Mapping[str, object]) -> bytes:
    """The answer to /tokenize, as JSON. Takes a second for a million tokens: not for the event loop.

    `more` are further members."""
    texts = [token_text(each) for each in found.token_bytes]
    head = f'{{"count": {len(found.token_ids)}, "max_model_len": {found.max_context_length}, '
    lists = f'"tokens": {_list(found.token_ids)}, "token_strs": {_list(texts)}'
    members = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in more.items())
    return f"{head}{lists}{members}}}".encode()


def _list(items: Sequence[object]) -> str:
    pieces = (json.dumps(list(items[at : at + _PIECE]))[1:-1] for at in range(0, len(items), _PIECE))
    return f"[{', '.join(pieces)}]"


def completion_logprobs(logprobs: Sequence[pb.TokenLogprob], offset: int) -> dict[str, Any]:
    """Completions' parallel lists; `offset` is where the first token's text begins."""
    tokens, values, tops, offsets = [], [], [], []
    for each in logprobs:
        text = token_text(each.token_bytes)
        known = each.HasField("logprob")
        tokens.append(text)
        values.append(clamped(each.logprob) if known else None)
        tops.append(_top_map(each, text) if known else None)
        offsets.append(offset)
        offset += len(text)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def chat_logprobs(logprobs: Sequence[pb.TokenLogprob]) -> dict[str, Any]:
    """Chat's list of objects."""
    return {
        "content": [
            {
                **_entry(each.token_bytes, each.logprob),
                "top_logprobs": [_entry(top.token_bytes, top.logprob) for top in each.top],
            }
            for each in logprobs
        ],
        "refusal": None,
    }


def prompt_logprobs(logprobs: Sequence[pb.TokenLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's shape: null, then token id -> {logprob, rank, decoded_token} of the token and the best."""
    found: list[dict[str, Any] | None] = []
    for each in logprobs:
        if not each.HasField("logprob"):
            found.append(None)
            continue
        entries = {
            str(top.token_id): {
                "logprob": clamped(top.logprob),
                "rank": rank,
                "decoded_token": token_text(top.token_bytes),
            }
            for rank, top in enumerate(each.top, 1)
        }
        entries[str(each.token_id)] = {
            "logprob": clamped(each.logprob),
            "rank": each.rank,
            "decoded_token": token_text(each.token_bytes),
        }
        found.append(entries)
    return found


def prompt_details(wants: Wants, info: pb.PromptInfo) -> dict[str, Any]:
    """vLLM's fields for what was asked of the prompt; none where nothing was."""
    found: dict[str, Any] = {}
    if wants.prompt_logprobs:
        found["prompt_logprobs"] = prompt_logprobs(info.logprobs)
    if wants.token_ids:
        found["prompt_token_ids"] = list(info.token_ids)
    if info.HasField("routed_experts"):
        found["prompt_routed_experts"] = routed_experts(info.routed_experts)
    return found


def routed_experts(routed: pb.RoutedExperts) -> dict[str, Any]:
    """`expert_ids` as [token][layer][k]."""
    dtype = "<u2" if routed.element_type == pb.RoutedExperts.ELEMENT_TYPE_UINT16 else "u1"
    shape = (routed.num_tokens, routed.num_layers, routed.experts_per_token)
    ids = np.frombuffer(routed.data, dtype).reshape(shape)
    return {"first_position": routed.first_position, "expert_ids": ids.tolist()}


def _top_map(each: pb.TokenLogprob, text: str) -> dict[str, float]:
    """By text, as OpenAI has it: of two tokens with the same text the more likely one stays."""
    found = {text: clamped(each.logprob)}
    for top in each.top:
        found.setdefault(token_text(top.token_bytes), clamped(top.logprob))
    return found


def _entry(token_bytes: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(token_bytes), "logprob": clamped(logprob), "bytes": list(token_bytes)}
