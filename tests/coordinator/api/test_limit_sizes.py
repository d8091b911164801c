"""Limits that take a large request to meet, or a model of their own; and every limit over a real channel."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
import tokenizers
from google.protobuf import text_format

from coordinator.api.http.json import MAX_BODY_BYTES
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.text.chat_template import ChatTemplate
from coordinator.engine.messages.request import ConstraintSource
from expertmesh.v1 import generation_pb2 as pb
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.api.both_fronts import Fronts, Setup, both_fronts
from tests.coordinator.api.fakes import (
    BOS,
    EOS,
    TOKENIZER_FILE,
    FakeEngine,
    ends_at_once,
    failure_of,
    generate_request,
    served_model,
)
from tests.coordinator.api.limit_table import LIMITS
from tests.coordinator.api.made_requests import resolved

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MAX_TEXT = 4 << 20
MAX_CONSTRAINT = 64 << 10
# A message, and the body that asks the same.
Pair = tuple[pb.GenerateRequest, dict[str, Any]]


class Blunt(Tokenizer):
    """Every text is one token: what four megabytes take is not looked at here."""

    def encode(self, text: str, *, add_bos: bool = True, add_eos: bool = False) -> list[int]:
        return [40]

    def least_tokens(self, num_bytes: int) -> int:
        return 1


class Lenient:
    """A checker to which every constraint is fine."""

    kinds = ("json_schema", "json_object", "regex", "choice", "grammar")

    def check(self, source: ConstraintSource) -> None:
        return None


def roomy_model() -> ServedModel:
    """More tokens than the table's model has, a template that adds nothing, and no wrong constraint."""
    model = served_model(
        chat_template=ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"),
        constraints=Lenient(),
        tokenizer=Blunt(tokenizers.Tokenizer.from_file(str(TOKENIZER_FILE)), [BOS], EOS),
    )
    return replace(model, config=replace(model.config, vocab_size=2000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fronts() -> AsyncIterator[Fronts]:
    async with both_fronts(FakeEngine(), roomy_model(), Setup(max_requests=1000)) as fronts:
        yield fronts


async def test_every_limit_of_the_table_over_a_real_channel() -> None:
    async with both_fronts(ends_at_once(), served_model(max_output_tokens=40)) as fronts:
        for limit in LIMITS:
            await fronts.stub.Generate(message_of(limit.edge))
            failed = await failure_of(fronts.stub.Generate(message_of(limit.past)))
            assert failed.code == "INVALID_ARGUMENT", limit.name
            assert limit.field in failed.fields, limit.name
            assert failed.details_size <= 4096


def message_of(text: str) -> pb.GenerateRequest:
    message = text_format.Parse(text, pb.GenerateRequest())
    if message.WhichOneof("prompt") is None:
        message.token_ids.ids.append(5)
    return message


def text(size: int) -> Pair:
    prompt = "é" * (size // 2) + "a" * (size % 2)
    return pb.GenerateRequest(text=prompt), {"prompt": prompt}


def chat(*contents: str) -> Pair:
    turns = [{"role": "user", "content": content} for content in contents]
    messages = [pb.ChatPrompt.Message(role="user", content=content) for content in contents]
    return pb.GenerateRequest(chat=pb.ChatPrompt(messages=messages)), {"messages": turns}


def biases(count: int) -> Pair:
    sampling = pb.SamplingParams(logit_bias=dict.fromkeys(range(count), 1.0))
    body = {"prompt": "x", "logit_bias": {str(token_id): 1 for token_id in range(count)}}
    return pb.GenerateRequest(text="x", sampling=sampling), body


def experts(count: int) -> Pair:
    selection = pb.ExpertSelection(allowed_experts=[0] * count)
    body = {"prompt": "x", "experts": {"allowed_experts": [0] * count}}
    return pb.GenerateRequest(text="x", experts=selection), body


def constraint(kind: str, size: int) -> Pair:
    value = "é" * (size // 2) + "a" * (size % 2)
    name = kind.removesuffix("_schema")
    message = pb.GenerateRequest(text="x")
    setattr(message.constraint, kind, value)
    return message, {"prompt": "x", f"guided_{name}": value}


def choices(*found: str) -> Pair:
    choice = pb.OutputConstraint.Choice(choices=found)
    message = pb.GenerateRequest(text="x", constraint=pb.OutputConstraint(choice=choice))
    return message, {"prompt": "x", "guided_choice": list(found)}


@dataclass(frozen=True)
class Size:
    """`make` takes the number that is limited."""

    name: str
    make: Callable[[int], Pair]
    edge: int
    past: int
    field: str
    param: str = "guided_choice"


MESSAGES, CHOICES = "prompt.chat.messages", "constraint.choice.choices"
SIZES = (
    Size("text", text, MAX_TEXT, MAX_TEXT + 1, "prompt.text", "prompt"),
    Size("messages", lambda n: chat(*"a" * n), 1024, 1025, MESSAGES, "messages"),
    Size("messages, least", lambda n: chat(*"a" * n), 1, 0, MESSAGES, "messages"),
    Size(
        "text of messages", lambda n: chat("a" * (n - 1), "a"), MAX_TEXT, MAX_TEXT + 1, MESSAGES, "messages"
    ),
    Size("biases", biases, 1024, 1025, "sampling.logit_bias", "logit_bias"),
    Size("expert ids", experts, 65536, 65537, "experts.allowed_experts", "experts.allowed_experts"),
    *(
        Size(f"{kind}, {name}", partial(constraint, kind), edge, past, f"constraint.{kind}", param)
        for kind, param in (
            ("json_schema", "guided_json"),
            ("regex", "guided_regex"),
            ("grammar", "guided_grammar"),
        )
        for name, edge, past in (("most", MAX_CONSTRAINT, MAX_CONSTRAINT + 1), ("least", 1, 0))
    ),
    Size("choices", lambda n: choices(*"a" * n), 256, 257, CHOICES),
    Size("choices, least", lambda n: choices(*"a" * n), 1, 0, CHOICES),
    Size(
        "choices, longest", lambda n: choices("a" * (n - 1), "a"), MAX_CONSTRAINT, MAX_CONSTRAINT + 1, CHOICES
    ),
    Size("choices, shortest", lambda n: choices("a", "b" * n), 1, 0, CHOICES),
)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
async def test_both_fronts(size: Size, fronts: Fronts) -> None:
    (fine, fine_body), (past, past_body) = size.make(size.edge), size.make(size.past)
    path = CHAT if "messages" in fine_body else COMPLETIONS
    assert (await fronts.stub.Generate(fine)).usage.completion_tokens == 3
    failed = await failure_of(fronts.stub.Generate(past))
    assert (failed.code, failed.reason, failed.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", [size.field])
    response = await fronts.http.post(path, json=fine_body)
    assert response.status_code == 200, response.text
    response = await fronts.http.post(path, json=past_body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", size.param)


@pytest.mark.parametrize(
    ("path", "edge", "past", "param"),
    [
        (COMPLETIONS, {"prompt": ["x"] * 64}, {"prompt": ["x"] * 65}, "prompt"),
        (COMPLETIONS, {"prompt": [[5]] * 64}, {"prompt": [[5]] * 65}, "prompt"),
        (COMPLETIONS, {"top_k": -1}, {"top_k": -2}, "top_k"),
        (COMPLETIONS, {"seed": 2**64 - 1}, {"seed": 2**64}, "seed"),
        (COMPLETIONS, {"seed": -(2**63)}, {"seed": -(2**63) - 1}, "seed"),
        (COMPLETIONS, {"logprobs": 0}, {"logprobs": -1}, "logprobs"),
        (
            CHAT,
            {"logprobs": True, "top_logprobs": 20},
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs",
        ),
        (CHAT, {"logprobs": True, "top_logprobs": 0}, {"top_logprobs": 1}, "top_logprobs"),
        (CHAT, {"max_completion_tokens": 1}, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"max_tokens": 1}, {"max_tokens": 0}, "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_only_http_has(
    path: str, edge: dict[str, Any], past: dict[str, Any], param: str, fronts: Fronts
) -> None:
    prompt = chat("x")[1] if path == CHAT else {"prompt": "x"}
    response = await fronts.http.post(path, json={**prompt, **edge})
    assert response.status_code == 200, response.text
    response = await fronts.http.post(path, json={**prompt, **past})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_of_just_the_size(is_declared: bool, fronts: Fronts) -> None:
    async def parts(size: int) -> AsyncIterator[bytes]:
        start = b'{"prompt": [5]}'
        yield start
        yield b" " * (size - len(start))

    for size, status in ((MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)):
        headers = {"content-length": str(size)} if is_declared else {}
        response = await fronts.http.post(COMPLETIONS, content=parts(size), headers=headers)
        assert response.status_code == status, response.text


async def test_a_message_of_just_the_size(fronts: Fronts) -> None:
    """A field that nobody knows fills it up."""
    raw: Any = fronts.channel.unary_unary("/expertmesh.v1.GenerationService/Generate")
    start = generate_request().SerializeToString()
    # Field 1000 of bytes: two bytes of tag, four of length.
    padding = (16 << 20) - len(start) - 6
    length = bytes([padding & 127 | 128, padding >> 7 & 127 | 128, padding >> 14 & 127 | 128, padding >> 21])
    message = start + b"\xc2\x3e" + length + bytes(padding)
    assert len(message) == 16 << 20
    assert await raw(message)
    failed = await failure_of(raw(message + b"\x08"))
    assert failed.code == "RESOURCE_EXHAUSTED"
    assert await raw(start)


DOUBLES = [
    field.name
    for field in pb.SamplingParams.DESCRIPTOR.fields
    if field.cpp_type == field.CPPTYPE_DOUBLE and field.message_type is None
]


async def test_numbers_that_are_none(fronts: Fronts) -> None:
    assert len(DOUBLES) >= 6
    for name in DOUBLES:
        for value in ("nan", "inf", "-inf"):
            message = generate_request(f"sampling {{ {name}: {value} }}")
            failed = await failure_of(fronts.stub.Generate(message))
            assert (failed.code, failed.fields) == ("INVALID_ARGUMENT", [f"sampling.{name}"])
        for literal, param in (("NaN", None), ("Infinity", None), ("1e999", name), ("-1e999", name)):
            content = f'{{"prompt": "x", "{name}": {literal}}}'
            response = await fronts.http.post(COMPLETIONS, content=content)
            assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    failed = await failure_of(
        fronts.stub.Generate(generate_request("sampling { logit_bias { key: 5 value: nan } }"))
    )
    assert failed.fields == ["sampling.logit_bias[5]"]
    response = await fronts.http.post(COMPLETIONS, content='{"prompt": "x", "logit_bias": {"5": 1e999}}')
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logit_bias[5]")


async def test_minus_zero_is_zero(fronts: Fronts) -> None:
    """Where zero is fine; elsewhere it is as wrong as zero."""
    for name in DOUBLES:
        is_fine = name not in ("top_p", "repetition_penalty")
        for text in ("0.0", "-0.0"):
            message = generate_request(f"sampling {{ {name}: {text} }}")
            content = f'{{"prompt": "x", "{name}": {text}}}'
            response = await fronts.http.post(COMPLETIONS, content=content)
            assert response.status_code == (200 if is_fine else 400), name
            if is_fine:
                await fronts.stub.Generate(message)
            else:
                assert (await failure_of(fronts.stub.Generate(message))).fields == [f"sampling.{name}"]
    greedy = resolved("sampling { temperature: -0.0 }")
    assert (greedy.seed, str(greedy.request.sampling.temperature)) == (None, "0.0")
