"""Calls of tools: whatever the model likes, they are calls of the tools there are, with valid arguments."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource, FreePart
from coordinator.engine.sampling.constraint import Matcher
from coordinator.structured.compiler import NOT_FREE, ConstraintCompiler
from coordinator.tools.forms import FORMS, CallForm, TagBody
from coordinator.tools.output_reader import OutputForm, OutputReader
from coordinator.tools.pieces import Arguments, CallBegun, Piece, Said
from moe_model.text.token_kinds import byte_alphabet
from moe_model.text.tokenizer import Tokenizer

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer"},
            "more": {
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "additionalProperties": False,
            },
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
MERGED = ['{"', '":', "\n<tool", "_call>", " [", "</", '"}', "get", "<arg", "]}"]
SPECIAL = ["[TOOL_CALLS]", "<|tool_call|>", "[ARGS]"]
SPECIAL += [
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
]


def vocabulary(special: Sequence[str]) -> Tokenizer:
    """Bytes, some merged, and marks that are special tokens."""
    spelled = {chr(byte): letter for letter, byte in byte_alphabet().items()}
    merged = ["".join(spelled[letter] for letter in text) for text in MERGED]
    vocab = {token: i for i, token in enumerate(["<eos>", *byte_alphabet(), *merged])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(["<eos>", "<think>", "</think>", *special])
    return Tokenizer(backend, eos_token_id=0)


@pytest.fixture(scope="module", params=[True, False], ids=["marks are tokens", "marks are text"])
def compiling(request: pytest.FixtureRequest) -> Iterator[tuple[Tokenizer, ConstraintCompiler]]:
    tokenizer = vocabulary(SPECIAL if request.param else ())
    compiler = ConstraintCompiler(tokenizer, tokenizer.vocab_size + 3, [0])
    yield tokenizer, compiler
    compiler.close()


def source(
    form: str, *, parallel: bool = True, free: FreePart = NOT_FREE, tools: Mapping[str, Any] = TOOLS
) -> ConstraintSource:
    named = [{"name": name, "parameters": schema} for name, schema in tools.items()]
    text = json.dumps({"form": form, "tools": named, "parallel": parallel})
    return ConstraintSource("tools", (text,), free=free)


def allowed(matcher: Matcher, tokenizer: Tokenizer) -> list[int]:
    mask_W = np.zeros(-(-(tokenizer.vocab_size + 3) // 32), dtype=np.int32)
    matcher.fill_mask(mask_W)
    bits = np.unpackbits(mask_W.view(np.uint8), bitorder="little")
    return [int(i) for i in np.flatnonzero(bits)]


def walk(
    matcher: Matcher, tokenizer: Tokenizer, seed: int, most: int = 2000, mark: bytes = b"\0"
) -> str | None:
    """A random output that ended; None where it did not in so many tokens. It likes to end, with `mark`."""
    rng, text = random.Random(seed), b""
    for _ in range(most):
        ids = allowed(matcher, tokenizer)
        ends = 0 in ids
        words = [i for i in ids if i]
        if ends and (not words or rng.random() < 0.5):
            return text.decode()
        closing = [
            i for i in words if tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"<", b"/", b"]", b">", b"_")
        ]
        begun = next(n for n in range(len(mark) - 1, -1, -1) if text.endswith(mark[:n]))
        following = [i for i in words if tokenizer.token_bytes(i) == mark[begun : begun + 1]]
        liked = following if following and rng.random() < 0.8 else closing
        token_id = rng.choice(liked if liked and rng.random() < 0.9 else words)
        text += tokenizer.token_bytes(token_id)
        matcher.advance(token_id)
    return None


def read(form: CallForm, text: str, tools: Mapping[str, Any] = TOOLS) -> list[Piece]:
    return OutputReader(OutputForm(form, tools)).finish(text)


def calls(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for piece in pieces:
        match piece:
            case CallBegun(name):
                found.append((name, ""))
            case Arguments(text):
                found[-1] = (found[-1][0], found[-1][1] + text)
            case Said(text):
                raise AssertionError(f"said {text!r}")
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_output_is_calls_with_valid_arguments(
    compiling: tuple[Tokenizer, ConstraintCompiler], form: CallForm
) -> None:
    tokenizer, compiler = compiling
    constraint = compiler.compile(source(form.name))
    num_ended, names = 0, set()
    for seed in range(25):
        mark = form.body.value_after.strip().encode() if isinstance(form.body, TagBody) else b"\0"
        text = walk(constraint.matcher(), tokenizer, seed, mark=mark)
        if text is None:
            continue
        num_ended += 1
        found = calls(read(form, text))
        assert found, text
        for name, arguments in found:
            names.add(name)
            jsonschema.validate(json.loads(arguments), TOOLS[name])
    assert num_ended >= 5
    assert names == set(TOOLS)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_call_where_several_are_not_wanted(
    compiling: tuple[Tokenizer, ConstraintCompiler], form: CallForm
) -> None:
    tokenizer, compiler = compiling
    constraint = compiler.compile(source(form.name, parallel=False, tools={"now": TOOLS["now"]}))
    for seed in range(8):
        text = walk(constraint.matcher(), tokenizer, seed)
        assert text is not None
        [(name, arguments)] = calls(read(form, text))
        assert (name, json.loads(arguments)) == ("now", {})


def test_special_tokens_stand_where_marks_are() -> None:
    tokenizer = vocabulary(SPECIAL)
    compiler = ConstraintCompiler(tokenizer, tokenizer.vocab_size, [0])
    matcher = compiler.compile(source("mistral_args")).matcher()
    mark = tokenizer.special_id("[TOOL_CALLS]")
    assert mark in allowed(matcher, tokenizer)
    assert tokenizer.encode("[", add_bos=False)[0] not in allowed(matcher, tokenizer)
    assert tokenizer.special_id("<think>") not in allowed(matcher, tokenizer)
    compiler.close()


STRICT = '{"name": "f", "strict": true, "parameters": {"not": {}}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no list of tools"),
        ('{"form": "none", "tools": [], "parallel": true}', "is no list of tools"),
        ('{"form": "hermes", "tools": [], "parallel": true}', "0 tools"),
        ('{"form": "hermes", "tools": [{"name": "f", "parameters": 1}], "parallel": true}', "not an object"),
        (f'{{"form": "hermes", "parallel": true, "tools": [{STRICT}]}}', "f: not is"),
    ],
)
def test_what_is_no_list_of_tools_is_refused(
    compiling: tuple[Tokenizer, ConstraintCompiler], text: str, message: str
) -> None:
    with pytest.raises(ConstraintError, match=message):
        compiling[1].compile(ConstraintSource("tools", (text,)))


def test_without_strictness_what_cannot_be_kept_is_left_out(
    compiling: tuple[Tokenizer, ConstraintCompiler],
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "uniqueItems": True, "items": {"type": "null"}}},
    }
    compiling[1].compile(source("hermes", tools={"f": schema}))
    with pytest.raises(ConstraintError, match="uniqueItems"):
        compiling[1].compile(ConstraintSource("json_schema", (json.dumps(schema),)))


def test_names_are_text_and_no_grammar(compiling: tuple[Tokenizer, ConstraintCompiler]) -> None:
    """Whatever is in them."""
    name = 'a" | /.*/ \\n <[1]> é'
    tokenizer, compiler = compiling
    matcher = compiler.compile(source("hermes", parallel=False, tools={name: {}})).matcher()
    text = (
        "<tool_call>\n"
        + '{"name": '
        + json.dumps(name, ensure_ascii=False)
        + ', "arguments": {}}\n</tool_call>'
    )
    for byte in text.encode():
        token_id = next(i for i in range(1, 257) if tokenizer.token_bytes(i) == bytes([byte]))
        assert token_id in allowed(matcher, tokenizer)
        matcher.advance(token_id)
    assert matcher.must_end
