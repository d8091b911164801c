"""The seam's contract, the cache, and threads."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coordinator.engine.messages.errors import ConstraintError
from coordinator.structured.compiler import ConstraintCompiler
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.structured.walks import (
    DEMO,
    EOS,
    TINY,
    Compiling,
    all_bytes,
    load_tokenizer,
    made_up_tokenizer,
)

EXAMPLES: dict[str, str | list[str]] = {
    "json_schema": '{"type": "array", "items": {"type": "integer"}}',
    "json_object": "",
    "regex": "[a-z]+[0-9]",
    "choice": ["yes", "no"],
    "grammar": 'start: "a" start "b" | "c"',
}


def id_of(tokenizer: Tokenizer, text: str) -> int:
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == text.encode())


def test_every_kind_compiles(compiling: Compiling) -> None:
    assert set(compiling.compiler.kinds) == set(EXAMPLES)
    for kind, value in EXAMPLES.items():
        assert compiling.allowed(compiling.compile(kind, value).matcher())


def test_no_mask_has_special_tokens_or_ids_without_text(compiling: Compiling) -> None:
    constraint = compiling.compile("regex", r"(?s).*")
    matcher = constraint.matcher()
    for token_id in compiling.tokenizer.encode("text, é and\n", add_bos=False):
        allowed = set(compiling.allowed(matcher))
        assert allowed & {0, 1, 2} == set()
        assert (EOS in allowed) == matcher.may_end
        assert max(allowed) < compiling.tokenizer.vocab_size
        matcher.advance(token_id)
    assert EOS in compiling.allowed(matcher)


@pytest.mark.parametrize("reference", ["<[0]>", "<[3]>", "<[0-2]>", "<eos>", "<end>", "<[9999]>"])
def test_a_grammar_cannot_name_special_tokens(compiling: Compiling, reference: str) -> None:
    with pytest.raises(ConstraintError):
        compiling.compile("grammar", f"start: {reference}")


def test_the_whole_row_is_written(compiling: Compiling) -> None:
    matcher = compiling.compile("regex", "a").matcher()
    clean, dirty = (np.full(-(-compiling.vocab_size // 32), fill, dtype=np.int32) for fill in (0, -1))
    matcher.fill_mask(clean)
    matcher.fill_mask(dirty)
    np.testing.assert_array_equal(clean, dirty)


def test_only_advance_changes_a_matcher(compiling: Compiling) -> None:
    matcher = compiling.compile("regex", "ab?").matcher()
    first = compiling.allowed(matcher)
    assert (compiling.allowed(matcher), matcher.may_end, matcher.must_end) == (first, False, False)
    matcher.advance(id_of(compiling.tokenizer, "a"))
    assert (matcher.may_end, matcher.must_end) == (True, False)
    assert compiling.allowed(matcher) == sorted([EOS, id_of(compiling.tokenizer, "b")])
    matcher.advance(id_of(compiling.tokenizer, "b"))
    assert (matcher.may_end, matcher.must_end) == (True, True)
    assert compiling.allowed(matcher) == [EOS]


def test_sequences_of_one_constraint_are_independent(compiling: Compiling) -> None:
    constraint = compiling.compile("choice", ["ax", "by"])
    one, other = constraint.matcher(), constraint.matcher()
    one.advance(id_of(compiling.tokenizer, "a"))
    other.advance(id_of(compiling.tokenizer, "b"))
    third = constraint.matcher()
    assert compiling.allowed(one) == [id_of(compiling.tokenizer, "x")]
    assert compiling.allowed(other) == [id_of(compiling.tokenizer, "y")]
    assert id_of(compiling.tokenizer, "a") in compiling.allowed(third)


def test_a_wrong_token_is_told_by_the_next_mask(compiling: Compiling) -> None:
    matcher = compiling.compile("choice", ["ab"]).matcher()
    matcher.advance(id_of(compiling.tokenizer, "b"))
    matcher.advance(id_of(compiling.tokenizer, "b"))
    assert (matcher.may_end, matcher.must_end) == (False, False)
    with pytest.raises(ConstraintError):
        compiling.allowed(matcher)


def made_up(tokens: list[str], eos: list[int], more_ids: int = 0) -> Compiling:
    tokenizer = made_up_tokenizer(tokens)
    vocab_size = tokenizer.vocab_size + more_ids
    return Compiling(tokenizer, ConstraintCompiler(tokenizer, vocab_size, eos), vocab_size)


def test_all_ends_are_allowed_and_are_never_text() -> None:
    compiling = made_up(["a", "b", "\u010a"], eos=[0, 2, 3, 99])
    matcher = compiling.compile("regex", r"a[b\n]*").matcher()
    assert compiling.allowed(matcher) == [1]
    matcher.advance(1)
    assert compiling.allowed(matcher) == [0, 2, 3]
    assert matcher.must_end
    compiling.compiler.close()


def test_without_an_end_the_engine_is_told() -> None:
    compiling = made_up(["a", "b"], eos=[])
    matcher = compiling.compile("regex", "ab?").matcher()
    matcher.advance(1)
    assert (compiling.allowed(matcher), matcher.may_end, matcher.must_end) == ([2], True, False)
    matcher.advance(2)
    assert (matcher.may_end, matcher.must_end) == (True, True)
    with pytest.raises(ConstraintError, match="empty output"):
        compiling.compile("choice", [""])
    compiling.compiler.close()


def test_a_vocabulary_that_lacks_bytes() -> None:
    compiling = made_up(["a", "b"], eos=[0])
    assert compiling.allowed(compiling.compile("regex", "[ac]").matcher()) == [1]
    with pytest.raises(ConstraintError, match="no output can satisfy it"):
        compiling.compile("regex", "c")
    matcher = compiling.compile("regex", "ac").matcher()
    matcher.advance(1)
    assert (matcher.may_end, matcher.must_end) == (False, False)
    with pytest.raises(ConstraintError):
        compiling.allowed(matcher)
    compiling.compiler.close()


def test_tokens_of_the_same_bytes_are_all_allowed() -> None:
    compiling = made_up(["\u0120", " ", "x"], eos=[0], more_ids=64)
    assert compiling.allowed(compiling.compile("regex", " x").matcher()) == [1, 2]
    compiling.compiler.close()


def test_characters_may_come_byte_by_byte() -> None:
    compiling = made_up(all_bytes(), eos=[0])
    matcher = compiling.compile("choice", ["😀"]).matcher()
    for byte in "😀".encode():
        (token_id,) = compiling.allowed(matcher)
        assert compiling.tokenizer.token_bytes(token_id) == bytes([byte])
        assert not matcher.may_end
        matcher.advance(token_id)
    assert matcher.must_end
    compiling.compiler.close()


def test_a_closed_compiler_leaves_its_constraints_good() -> None:
    tokenizer = load_tokenizer(TINY)
    compiling = Compiling(tokenizer, ConstraintCompiler(tokenizer, 320, [EOS]), 320)
    constraint = compiling.compile("regex", "a+")
    compiling.compiler.close()
    compiling.compiler.close()
    assert compiling.allowed(constraint.matcher())


def test_threads_compile_and_walk_at_once() -> None:
    tokenizer = load_tokenizer(DEMO)
    compiling = Compiling(tokenizer, ConstraintCompiler(tokenizer, 4096, [EOS]), 4096)
    barrier = threading.Barrier(4)

    def work(number: int) -> list[bytes]:
        barrier.wait(timeout=20)
        texts = []
        for turn in range(10):
            schema = {"type": "array", "items": {"const": f"{turn}"}, "maxItems": 3}
            constraint = compiling.compile("json_schema", json.dumps(schema))
            own = compiling.compile("regex", f"[a-c]{{1,9}}{number}{turn}")
            texts.append(b"".join(text for text, _, _ in compiling.steps(constraint, random.Random(turn))))
            last = [text for text, _, ended in compiling.steps(own, random.Random(turn)) if ended]
            assert last
            assert last[0].endswith(f"{number}{turn}".encode())
        return texts

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert results[0] == results[1] == results[2] == results[3]
    compiling.compiler.close()
