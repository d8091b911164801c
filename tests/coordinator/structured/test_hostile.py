"""What is refused, how it is said, and that nothing hangs or crashes."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.sampling.constraint import Matcher
from coordinator.structured.compiler import CompilerLimits, ConstraintCompiler
from coordinator.structured.grammars import MAX_GAP
from tests.coordinator.structured.walks import DEMO, EOS, Compiling, load_tokenizer


@pytest.fixture(scope="module")
def impatient() -> Iterator[Compiling]:
    tokenizer = load_tokenizer(DEMO)
    limits = CompilerLimits(compile_seconds=0.5)
    compiling = Compiling(tokenizer, ConstraintCompiler(tokenizer, 4096, [EOS], limits), 4096)
    yield compiling
    compiling.compiler.close()


def chain(count: int, rule: str, last: str) -> str:
    lines = [rule.format(i, i + 1) for i in range(count)]
    return "\n".join(["start: t0" if rule[0] == "t" else "start: T0", *lines, last.format(count)])


def deep(count: int) -> str:
    return '{"items":' * count + "true" + "}" * count


LAUGHS = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 10} for i in range(12)} | {"d12": {}}
PATTERNS = [{"properties": {"p": {"type": "string", "pattern": f"a{i}.*b{i}"}}} for i in range(200)]
HOSTILE = {
    "deep schema": ("json_schema", deep(50)),
    "too deep schema": ("json_schema", deep(500)),
    "far too deep schema": ("json_schema", "[" * 60_000),
    "billion laughs": ("json_schema", json.dumps({"$defs": LAUGHS, "$ref": "#/$defs/d0"})),
    "ring of references": ("json_schema", '{"$ref": "#"}'),
    "endless object": (
        "json_schema",
        '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
    ),
    "many items": ("json_schema", '{"type": "array", "minItems": 1000000000}'),
    "long string": ("json_schema", '{"type": "string", "minLength": 1000000000}'),
    "hard intersection": ("json_schema", json.dumps({"allOf": PATTERNS})),
    "many properties": ("json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(2000)}})),
    "fine multiple": ("json_schema", '{"type": "integer", "multipleOf": 999999937}'),
    "huge number": ("json_schema", '{"type": "number", "minimum": 1e999}'),
    "catastrophic": ("regex", "((a+)+)+b|(a|a|aa?)*c"),
    "exponential automaton": ("regex", "(.*a.{1000}|.*b.{900})c"),
    "huge repetition": ("regex", "a{1000000000}"),
    "nested repetition": ("regex", "(((a{1000}){1000}){1000}){1000}"),
    "deep expression": ("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "many classes": ("regex", r"(\p{L}\p{N}\p{S})" * 2000),
    "long choices": ("choice", ["a" * i for i in range(1, 257)]),
    "deep grammar": ("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "chain of rules": ("grammar", chain(4000, "t{0}: t{1}", 't{0}: "a"')),
    "chain of terminals": ("grammar", chain(3000, 'T{0}: T{1} "a"', 'T{0}: "a"')),
    "laughing terminals": ("grammar", chain(12, "T{0}: " + "T{1} " * 10, 'T{0}: "a"')),
    "ambiguous": ("grammar", 'start: start start start | "a" |'),
    "endless": ("grammar", 'start: "a" start'),
    "ebnf in reverse": (
        "grammar",
        "\n".join(f"r{i} ::= r{i + 1}" for i in range(3500)) + '\nr3500 ::= "a"\nroot ::= r0',
    ),
    "not text": ("grammar", "\x00\x1b[31m((((\u202e"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_hangs_or_crashes(impatient: Compiling, name: str) -> None:
    """It compiles, and its masks are quick, or it is refused in one line; what comes next is served."""
    kind, value = HOSTILE[name]
    started = time.monotonic()
    try:
        matcher = impatient.compile(kind, value).matcher()
        for _ in range(50):
            words = [token_id for token_id in impatient.allowed(matcher) if token_id != EOS]
            if matcher.must_end:
                break
            matcher.advance(words[len(words) // 2])
    except ConstraintError as error:
        check_message(error)
    assert time.monotonic() - started < 5
    assert impatient.compile("regex", f"still here, {len(name)}")


def check_message(error: ConstraintError) -> None:
    assert str(error).isprintable()
    assert 0 < len(str(error)) <= 220


def test_a_compile_that_hangs_or_crashes_is_refused(impatient: Compiling) -> None:
    with pytest.raises(ConstraintError, match=r"takes more than 0\.5 s"):
        impatient.compile(*HOSTILE["hard intersection"])
    with pytest.raises(ConstraintError, match="too large or too deeply nested"):
        impatient.compile(*HOSTILE["chain of rules"])


def test_an_output_that_gets_lost_in_its_grammar_fails_alone(impatient: Compiling) -> None:
    """The library would then allow EOS, though the output is not valid."""
    lost, other = (impatient.compile(*HOSTILE["exponential automaton"]).matcher() for _ in range(2))
    with pytest.raises(ConstraintError, match="became too complex"):
        wander(impatient, lost)
    assert (lost.may_end, lost.must_end) == (False, False)
    lost.advance(EOS + 1)
    with pytest.raises(ConstraintError, match="became too complex"):
        impatient.allowed(lost)
    assert impatient.allowed(other)


def wander(compiling: Compiling, matcher: Matcher) -> None:
    rng = random.Random(0)
    for _ in range(400):
        matcher.advance(rng.choice([t for t in compiling.allowed(matcher) if t != EOS]))


def test_too_much_text_is_refused(impatient: Compiling) -> None:
    assert impatient.compile("choice", ["x" * 65_536])
    for kind, value in (("regex", "é" * 32_769), ("choice", ["x" * 32_768, "y" * 32_769])):
        with pytest.raises(ConstraintError, match=r"6553[78] bytes, more than 65536"):
            impatient.compile(kind, value)


REFUSED: dict[str, Any] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"properties": {"a": {"contains": {}}}},
    "dependentRequired": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "dependentRequired": {"a": ["b"]},
    },
    "unevaluatedProperties": {"allOf": [{"unevaluatedProperties": False}]},
    "propertyNames": {"additionalProperties": {"propertyNames": {}}},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "string"},
    "format": {"type": "string", "format": "of-my-own"},
    "oneOf": {"oneOf": [{"type": "string"}, {"minLength": 2}]},
    "minProperties": {"type": "object", "minProperties": 2},
    "exclusiveMinimum": {"type": "integer", "exclusiveMinimum": True},
    r"\$ref": {"$ref": "https://example.com/schema"},
    "patternProperty": {"patternProperties": {"^a": {}, "a$": {}}},
    "look-around": {"type": "string", "pattern": "(?=a)"},
    "type": {"type": "text"},
    "minLength": {"minLength": "x"},
    "incompatible": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "number that is too large": {"maximum": float("1e400")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_enforced_is_refused_by_name(impatient: Compiling, name: str) -> None:
    text = json.dumps(REFUSED[name]).replace("Infinity", "1e400")
    with pytest.raises(ConstraintError, match=f"(?i){name}") as caught:
        impatient.compile("json_schema", text)
    check_message(caught.value)


def test_property_names_are_no_keywords(impatient: Compiling) -> None:
    names = {"not": {}, "$ref": {"type": "null"}, "uniqueItems": {}}
    assert impatient.compile("json_schema", json.dumps({"properties": names}))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("json_schema", "", "is not JSON"),
        ("json_schema", "{'a': 1}", "is not JSON"),
        ("json_schema", "[]", "must be a JSON object or a boolean"),
        ("json_schema", '"string"', "must be a JSON object or a boolean"),
        ("json_schema", '{"minimum": NaN}', "NaN is no JSON number"),
        ("json_schema", deep(65), "nested more than 64 deep"),
        ("json_schema", "false", "no output can satisfy it"),
        ("json_schema", '{"enum": []}', "(?i)unsatisfiable"),
        ("json_schema", '{"const": "\\ud800"}', "."),
        ("regex", "[", "^not a regular expression: unclosed character class"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"\bword", "lookarounds not supported"),
        ("regex", "\ud800", "lone surrogate"),
        ("regex", r"[^\s\S]", "no output can satisfy it"),
        ("choice", [], "has no choices"),
        ("choice", ["a", "\udfff"], "lone surrogate"),
        ("grammar", "", "no start rule"),
        ("grammar", "start: nothing", "nothing"),
        ("grammar", "start: A\nA: /a/\nB: ((", "^line 3, column "),
        ("grammar", 'start: "a" <eos>', "special token"),
        ("grammar", 'top ::= "a"', "has no rule root"),
        ("json", "{}", "no kind of constraint"),
        ("regex", ["a", "b"], "no kind of constraint"),
    ],
)
def test_refusals_say_what_is_wrong(
    impatient: Compiling, kind: str, value: str | list[str], message: str
) -> None:
    with pytest.raises(ConstraintError, match=message) as caught:
        impatient.compile(kind, value)
    check_message(caught.value)


def test_true_allows_any_json(impatient: Compiling) -> None:
    words = impatient.allowed(impatient.compile("json_schema", "true").matcher())
    first = {impatient.tokenizer.token_bytes(token_id)[:1] for token_id in words}
    assert first == {bytes([byte]) for byte in b'"-0123456789tfn[{'}


def test_white_space_in_json_is_bounded(impatient: Compiling) -> None:
    matcher = impatient.compile("json_object", "").matcher()
    tokenizer = impatient.tokenizer
    space = tokenizer.encode(" ", add_bos=False)[0]
    matcher.advance(tokenizer.encode("{", add_bos=False)[0])
    count = 0
    while space in impatient.allowed(matcher):
        matcher.advance(space)
        count += 1
    assert count == MAX_GAP
