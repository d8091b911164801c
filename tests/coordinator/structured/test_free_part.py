"""What comes before a constraint is free, and costs nothing; what comes after its mark is held to it."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.messages.request import ConstraintSource, FreePart
from coordinator.engine.sampling.constraint import Matcher
from coordinator.structured.compiler import ConstraintCompiler
from coordinator.structured.matcher import GrammarMatcher
from coordinator.tools.forms import FORMS
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.structured.test_tool_grammar import (
    SPECIAL,
    allowed,
    calls,
    read,
    source,
    vocabulary,
    walk,
)

UNTIL = FreePart(until="<tool_call>")
TOKENIZER = vocabulary(SPECIAL)
COMPILER = ConstraintCompiler(TOKENIZER, TOKENIZER.vocab_size + 3, [0])
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module", autouse=True)
def _closed() -> object:
    yield
    COMPILER.close()


def tokens(text: str, rng: random.Random, tokenizer: Tokenizer = TOKENIZER) -> list[int]:
    """Some split of the text into tokens of the vocabulary, special ones where their text is."""
    found: list[int] = []
    data = text.encode()
    while data:
        fits = [
            i for i in range(1, tokenizer.vocab_size) if data.startswith(tokenizer.token_bytes(i) or b"\0\0")
        ]
        whole = [i for i in fits if tokenizer.is_special(i)]
        token_id = whole[0] if whole else rng.choice(fits)
        found.append(token_id)
        data = data[len(tokenizer.token_bytes(token_id)) :]
    return found


def begun(free: FreePart, text: str = "", seed: int = 0, form: str = "hermes") -> Matcher:
    matcher = COMPILER.compile(source(form, free=free)).matcher()
    for token_id in tokens(text, random.Random(seed)):
        matcher.advance(token_id)
    return matcher


@settings(max_examples=60)
@given(st.text(st.sampled_from('<tool_cal>\n {}"é'), max_size=60), st.integers(0, 99))
def test_text_without_the_mark_is_free(text: str, seed: int) -> None:
    matcher = COMPILER.compile(source("hermes", free=UNTIL)).matcher()
    for token_id in tokens(text.replace("<tool_call>", ""), random.Random(seed)):
        assert matcher.is_free
        assert matcher.may_end
        matcher.advance(token_id)
    assert matcher.is_free or "<tool_call>" in text.replace("<tool_call>", "")


@settings(max_examples=60)
@given(st.text(st.sampled_from("<tool_c \n"), max_size=20), st.integers(0, 9999))
def test_after_the_mark_the_grammar_holds(text: str, seed: int) -> None:
    """Wherever it is, and however the text is split."""
    matcher = begun(UNTIL, f"{text} <tool_call>", seed)
    assert not matcher.is_free
    rest = walk(matcher, TOKENIZER, seed)
    if rest is not None:
        assert calls(read(FORMS["hermes"], "<tool_call>" + rest))


def test_a_special_token_is_a_mark() -> None:
    matcher = begun(FreePart(until="[TOOL_CALLS]"), "Well.", form="mistral_args")
    mark = TOKENIZER.special_id("[TOOL_CALLS]")
    assert mark is not None
    matcher.advance(mark)
    assert not matcher.is_free
    rest = walk(matcher, TOKENIZER, 3)
    assert rest is not None
    assert calls(read(FORMS["mistral_args"], "[TOOL_CALLS]" + rest))


def test_a_mark_within_a_thought_says_nothing() -> None:
    free = FreePart("<think>", "</think>", until="<tool_call>")
    assert begun(free, f"<think>I may {CALL} or not").is_free
    assert begun(free, f"<think>I may {CALL} or not</think> So: ").is_free
    assert not begun(free, "<think>Hm</think>So <tool_call>").is_free
    thinking = FreePart("<think>", "</think>", is_thinking=True, until="<tool_call>")
    assert begun(thinking, "I may <tool_call>").is_free
    assert not begun(thinking, "I may</think><tool_call>").is_free


def test_text_may_come_first_where_a_thought_may() -> None:
    free = FreePart("<think>", "</think>", until="<tool_call>")
    assert not begun(free, "<thin <tool_call>").is_free
    assert begun(free, "So").is_free


def test_a_thought_before_a_call_that_must_come_does_not_end_the_output() -> None:
    matcher = begun(FreePart("<think>", "</think>", is_thinking=True), "Let me see")
    assert not matcher.may_end
    ids = allowed(matcher, TOKENIZER)
    assert 0 not in ids
    assert len(ids) >= TOKENIZER.vocab_size - 1
    for token_id in tokens(".</think>", random.Random(0)):
        matcher.advance(token_id)
    rest = walk(matcher, TOKENIZER, 1)
    assert rest is not None
    assert calls(read(FORMS["hermes"], rest))


def test_a_thought_may_begin_where_a_call_must_come() -> None:
    matcher = begun(FreePart("<think>", "</think>"))
    think, first = TOKENIZER.special_id("<think>"), TOKENIZER.encode("<", add_bos=False)[0]
    assert {think, first} <= set(allowed(matcher, TOKENIZER))
    assert TOKENIZER.encode("x", add_bos=False)[0] not in allowed(matcher, TOKENIZER)
    rest = walk(begun(FreePart("<think>", "</think>"), "<think>Hm</think>"), TOKENIZER, 2)
    assert rest is not None
    assert calls(read(FORMS["hermes"], rest))


def test_a_schema_holds_after_a_thought() -> None:
    free = FreePart("<think>", "</think>", is_thinking=True)
    constraint = COMPILER.compile(ConstraintSource("choice", ("yes", "no"), free=free))
    matcher = constraint.matcher()
    for token_id in tokens("no, or yes</think>yes", random.Random(0)):
        assert not matcher.must_end
        matcher.advance(token_id)
    assert matcher.must_end


def test_a_mark_that_the_grammar_cannot_go_on_from_leaves_the_output_free() -> None:
    """One that is spelled where it is a token of its own."""
    matcher = COMPILER.compile(source("mistral_args", free=FreePart(until="[TOOL_CALLS]"))).matcher()
    for byte in b"[TOOL_CALLS]now":
        matcher.advance(next(i for i in range(1, 257) if TOKENIZER.token_bytes(i) == bytes([byte])))
    assert matcher.is_free
    assert matcher.may_end
    assert not matcher.must_end


def test_white_space_may_be_in_the_token_in_which_the_mark_begins() -> None:
    matcher = COMPILER.compile(source("hermes", free=UNTIL)).matcher()
    ids = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}
    for text in (b"a", b"\n<tool", b"_call>"):
        assert matcher.is_free
        matcher.advance(ids[text])
    assert not matcher.is_free


def test_the_library_is_not_asked_while_the_output_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = COMPILER.compile(source("hermes", free=UNTIL)).matcher()
    monkeypatch.setattr(GrammarMatcher, "advance", None)
    monkeypatch.setattr(GrammarMatcher, "_look", None)
    for token_id in tokens("A long answer, without any call. " * 20, random.Random(0)):
        assert matcher.is_free
        assert not matcher.must_end
        matcher.fill_mask(np.zeros(16, dtype=np.int32))
        matcher.advance(token_id)
