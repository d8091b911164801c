"""Streams put together again, as a client would do it: written apart from the product's own join."""

import json
from collections.abc import Iterable
from typing import Any

from expertmesh.v1 import generation_pb2 as pb

# What is put together of a chunk's choice; everything else is said once.
_GROWS = ("text", "token_ids")


def joined(events: Iterable[pb.GenerateStreamResponse]) -> pb.GenerateResponse:
    """The whole response, for any number of sequences."""
    response = pb.GenerateResponse()
    outputs: dict[int, pb.SequenceOutput] = {}
    for event in events:
        if event.HasField("prompt"):
            response.prompt.MergeFrom(event.prompt)
        elif event.HasField("delta"):
            output = outputs.setdefault(event.delta.index, pb.SequenceOutput(index=event.delta.index))
            output.text += event.delta.text
            output.token_ids.extend(event.delta.token_ids)
            output.logprobs.extend(event.delta.logprobs)
        elif event.HasField("finished"):
            ended = event.finished
            output = outputs.setdefault(ended.index, pb.SequenceOutput(index=ended.index))
            output.finish_reason = ended.finish_reason
            if ended.HasField("stop_match"):
                output.stop_match.CopyFrom(ended.stop_match)
        else:
            response.usage.CopyFrom(event.summary.usage)
            response.timings.CopyFrom(event.summary.timings)
    response.outputs.extend(outputs[index] for index in sorted(outputs))
    response.request_id, response.model = response.prompt.request_id, response.prompt.model
    return response


def chunks_of(text: str) -> list[dict[str, Any]]:
    """Server-sent events, without the one that says it is done."""
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


def joined_chunks(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Choices and usage as the whole answer has them; a chat's deltas become its message."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices.setdefault(choice["index"], {"index": choice["index"], "logprobs": None})
            _grow(whole, dict(choice))
    return {"choices": [choices[index] for index in sorted(choices)], "usage": chunks[-1]["usage"]}


def _grow(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    logprobs = choice.pop("logprobs")
    if logprobs is not None:
        so_far = whole["logprobs"] = whole["logprobs"] or {}
        for name, value in logprobs.items():
            so_far[name] = value if value is None else so_far.get(name, []) + value
    if "delta" in choice:
        delta = choice.pop("delta")
        message = whole.setdefault("message", {"role": None, "content": "", "refusal": None})
        message["role"] = delta.get("role", message["role"])
        message["content"] += delta.get("content", "")
    if "routed_experts" in choice:
        routed = choice.pop("routed_experts")
        so_far = whole.setdefault("routed_experts", {**routed, "expert_ids": []})
        assert routed["first_position"] == so_far["first_position"] + len(so_far["expert_ids"])
        so_far["expert_ids"] += routed["expert_ids"]
    for name in _GROWS:
        if name in choice:
            value = choice.pop(name)
            whole[name] = whole[name] + value if name in whole else value
    whole.update(choice)
