"""White space in JSON: a few characters between two tokens, or none."""

import json
import random
import re

import pytest

from coordinator.engine.sampling.constraint import Matcher
from coordinator.structured.grammars import MAX_GAP
from tests.coordinator.structured.walks import EOS, Compiling

FLAG = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
)
LIST = json.dumps({"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 2, "maxItems": 4})
CASES = [("json_schema", FLAG), ("json_schema", LIST), ("json_schema", "{}"), ("json_object", "")]
SPACE = b" \n\r\t"


def gaps(text: str) -> list[str]:
    """White space outside of strings."""
    return re.findall(r"[ \n\r\t]+", re.sub(r'"(\\.|[^"\\])*"?', '""', text))


def written(compiling: Compiling, matcher: Matcher, rng: random.Random, max_tokens: int) -> tuple[str, bool]:
    """The output of a model that writes white space wherever it may, and whether it ended."""
    text = b""
    for _ in range(max_tokens):
        allowed = compiling.allowed(matcher)
        spaces = [t for t in allowed if t != EOS and not compiling.tokenizer.token_bytes(t).strip(SPACE)]
        token_id = rng.choice(spaces or allowed)
        if token_id == EOS or (matcher.may_end and rng.random() < 0.5):
            return text.decode(), True
        text += compiling.tokenizer.token_bytes(token_id)
        matcher.advance(token_id)
    return text.decode(errors="ignore"), False


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_no_gap_is_longer_than_the_bound(compiling: Compiling, kind: str, value: str) -> None:
    constraint = compiling.compile(kind, value)
    for seed in range(8):
        text, _ = written(compiling, constraint.matcher(), random.Random(seed), 60)
        assert all(len(gap) <= MAX_GAP for gap in gaps(text)), text


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_compact_json_has_none(compiling: Compiling, kind: str, value: str) -> None:
    constraint = compiling.compile(kind, value, compact_json=True)
    for seed in range(8):
        text, ended = written(compiling, constraint.matcher(), random.Random(seed), 60)
        assert gaps(text) == []
        if ended:
            json.loads(text)


def test_both_ways_of_writing_are_kept_apart(compiling: Compiling) -> None:
    """The compiler remembers which grammar it built for what."""
    space = compiling.tokenizer.encode(" ", add_bos=False)[0]
    brace = compiling.tokenizer.encode("{", add_bos=False)[0]
    for compact in (False, True, False):
        matcher = compiling.compile("json_object", "", compact_json=compact).matcher()
        matcher.advance(brace)
        assert (space in compiling.allowed(matcher)) is not compact


def test_an_object_ends_soon_though_the_model_writes_white_space(compiling: Compiling) -> None:
    constraint = compiling.compile("json_schema", FLAG)
    for seed in range(16):
        text, ended = written(compiling, constraint.matcher(), random.Random(seed), 30)
        assert ended, text
        assert set(json.loads(text)) == {"a"}
