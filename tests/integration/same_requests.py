"""Requests that are the same over gRPC, as protobuf text, and over HTTP, as a body."""

from typing import Any

from google.protobuf import text_format

from expertmesh.v1 import generation_pb2 as pb

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "def test_main(self):\n    "
WORLD = "東京 🙂"
# The message as text, the route, and the body that asks the same.
Asked = tuple[str, str, dict[str, Any]]


def complete(text: str, **body: Any) -> Asked:
    """`text` is the message but for its prompt and the number of tokens."""
    body = {"prompt": PROMPT, "max_tokens": 8, **body}
    merged = pb.GenerateRequest(
        text=body["prompt"], stopping=pb.StoppingParams(max_tokens=body["max_tokens"])
    )
    merged.MergeFrom(text_format.Parse(text, pb.GenerateRequest()))
    return text_format.MessageToString(merged), COMPLETIONS, body


def chat(text: str, **body: Any) -> Asked:
    turn = {"role": "user", "content": "a test"}
    message = f"chat {{ messages {{ role: 'user' content: 'a test' }} }} stopping {{ max_tokens: 6 }} {text}"
    return message, CHAT, {"messages": [turn], "max_tokens": 6, **body}


IDS = [2, *(4 + 7 * i % 4000 for i in range(300))]
REQUESTS = {
    "greedy": complete("sampling { temperature: 0 }", temperature=0),
    "the largest seed": complete("sampling { seed: 18446744073709551615 }", seed=2**64 - 1),
    "logprobs": complete("sampling { seed: 7 } response { logprobs: 3 }", seed=7, logprobs=3),
    "own logprob": complete("sampling { seed: 7 } response { logprobs: 0 }", seed=7, logprobs=0),
    "sequences": complete(
        "sampling { seed: 3 temperature: 1 num_sequences: 3 } response { logprobs: 2 }",
        seed=3,
        temperature=1,
        n=3,
        logprobs=2,
    ),
    "stop": complete(
        "sampling { temperature: 0 } stopping { stop_sequences: ['nowhere', 'yAP'] }",
        temperature=0,
        stop=["nowhere", "yAP"],
        max_tokens=64,
    ),
    "stop included": complete(
        "sampling { temperature: 0 } stopping { stop_sequences: 'PyA' include_stop_in_output: true }",
        temperature=0,
        stop="PyA",
        include_stop_str_in_output=True,
        max_tokens=64,
    ),
    "sampling of every kind": complete(
        "sampling { seed: 5 temperature: 1.3 top_k: 30 top_p: 0.8 min_p: 0.01 presence_penalty: 0.5 "
        "frequency_penalty: -0.25 repetition_penalty: 1.1 logit_bias { key: 12 value: -100 } "
        "logit_bias { key: 300 value: 2.5 } } stopping { min_tokens: 8 ignore_eos: true }",
        seed=5,
        temperature=1.3,
        top_k=30,
        top_p=0.8,
        min_p=0.01,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        repetition_penalty=1.1,
        logit_bias={"12": -100, "300": 2.5},
        min_tokens=8,
        ignore_eos=True,
    ),
    "scored prompt": complete(
        "sampling { seed: 1 } response { prompt_logprobs: 2 logprobs: 2 }", seed=1, logprobs=2, echo=True
    ),
    "only scored": complete(
        "sampling { seed: 1 } response { prompt_logprobs: 1 logprobs: 1 }",
        seed=1,
        max_tokens=0,
        logprobs=1,
        echo=True,
    ),
    "prompt logprobs": complete(
        "sampling { seed: 1 } response { prompt_logprobs: 2 }", seed=1, prompt_logprobs=2
    ),
    "constraint": complete(
        f"sampling {{ seed: 1 }} constraint {{ choice {{ choices: '{WORLD}' }} }} response {{ logprobs: 0 }}",
        seed=1,
        guided_choice=[WORLD],
        logprobs=0,
        max_tokens=64,
    ),
    "experts": complete(
        "sampling { seed: 1 } experts { denied_experts: 1 experts_per_token: 1 }",
        seed=1,
        experts={"denied_experts": [1], "experts_per_token": 1},
    ),
    "routing": complete(
        "sampling { seed: 1 } response { return_routed_experts: true }", seed=1, return_routed_experts=True
    ),
    "truncated": complete("sampling { seed: 1 } truncate_prompt_tokens: 3", seed=1, truncate_prompt_tokens=3),
    "long": (
        f"token_ids {{ ids: {IDS} }} sampling {{ seed: 9 }} "
        "stopping { max_tokens: 8 } response { logprobs: 1 }",
        COMPLETIONS,
        {"prompt": IDS, "seed": 9, "max_tokens": 8, "logprobs": 1},
    ),
    "chat": chat("sampling { seed: 2 }", seed=2),
    "chat logprobs": chat(
        "sampling { seed: 2 num_sequences: 2 } response { logprobs: 4 }",
        seed=2,
        n=2,
        logprobs=True,
        top_logprobs=4,
    ),
    "chat prompt logprobs": chat(
        "response { prompt_logprobs: 0 } sampling { seed: 2 }", prompt_logprobs=0, seed=2
    ),
}
