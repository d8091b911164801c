"""Text and ids against what the `tokenizers` library itself says, and text that grows token by token."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from moe_model.errors import TokenizerError
from moe_model.text.token_kinds import byte_alphabet
from moe_model.text.tokenizer import IncrementalDecoder, Tokenizer
from tests.models import GOLDEN

DATA = (GOLDEN / "tokenizer.json").read_bytes()
TOKENIZER = Tokenizer.from_bytes(DATA)
LIBRARY = tokenizers.Tokenizer.from_str(DATA.decode())
LIBRARY.no_padding()
BOS, EOS = 2, 3

TEXT = st.text(max_size=40) | st.text("ab é東🙂\n<", max_size=40)
# Past the vocabulary, too: ids that no token has.
IDS = st.lists(st.integers(0, 330), max_size=40)


def test_golden_cases(golden_facts: dict[str, Any]) -> None:
    for case in golden_facts["tokenizer"]:
        assert TOKENIZER.encode(case["text"], add_eos=True) == case["ids"]
        assert TOKENIZER.encode(case["text"]) == case["ids"][:-1]
        assert TOKENIZER.encode(case["text"], add_bos=False) == case["ids"][1:-1]
        assert TOKENIZER.decode(case["ids"]) == case["decoded"]


def test_padding_and_truncation_of_the_file_are_off() -> None:
    padded = tokenizers.Tokenizer.from_str(DATA.decode())
    padded.enable_padding(pad_id=0, pad_token="<pad>", length=50)
    padded.enable_truncation(4)
    assert len(Tokenizer.from_bytes(padded.to_str().encode()).encode("Hello world")) == 10 + 1


@given(TEXT)
def test_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids[0] == BOS
    if not any(f"<{name}>" in text for name in ("pad", "unk", "bos", "eos")):
        assert TOKENIZER.decode(ids) == text


@given(TEXT | st.text("e <>pad\n", min_size=100, max_size=400))
def test_a_text_has_at_least_so_many_tokens(text: str) -> None:
    num_tokens = len(TOKENIZER.encode(text, add_bos=False))
    assert TOKENIZER.least_tokens(len(text.encode())) <= num_tokens


def test_what_may_lose_bytes_may_have_no_tokens() -> None:
    """Each of these makes nothing of some text, so that its length says nothing."""
    changes: list[Callable[[Any], object]] = [
        lambda file: file.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        lambda file: file.update(pre_tokenizer={"type": "Whitespace"}),
        lambda file: file["model"]["vocab"].pop("z"),
        lambda file: file["added_tokens"][3].update(rstrip=True),
    ]
    assert TOKENIZER.least_tokens(17) == 1
    assert TOKENIZER.least_tokens(18) == 2
    for change in changes:
        file = json.loads(DATA)
        file["model"]["merges"] = []
        change(file)
        assert Tokenizer.from_bytes(json.dumps(file).encode()).least_tokens(1 << 20) == 0


@given(IDS, st.booleans())
def test_decode_is_the_librarys(ids: list[int], skip: bool) -> None:
    expected = LIBRARY.decode(ids, skip_special_tokens=skip)
    assert TOKENIZER.decode(ids, skip_special_tokens=skip) == expected


@given(TEXT.map(TOKENIZER.encode) | IDS, st.data(), st.booleans())
def test_pieces_join_to_the_whole(ids: list[int], data: st.DataObject, skip: bool) -> None:
    decoder = IncrementalDecoder(TOKENIZER, skip_special_tokens=skip)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=len(ids))))
    pieces = [decoder.push(ids[i:j]) for i, j in pairwise([0, *cuts, len(ids)])]
    assert "".join(pieces) + decoder.flush() == TOKENIZER.decode(ids, skip_special_tokens=skip)


@given(TEXT)
def test_no_piece_of_a_text_splits_a_character(text: str) -> None:
    decoder = IncrementalDecoder(TOKENIZER)
    sofar = ""
    for token_id in TOKENIZER.encode(text, add_bos=False):
        sofar += decoder.push([token_id])
        assert "\ufffd" not in sofar or "\ufffd" in text
        if not any(f"<{name}>" in text for name in ("pad", "unk", "bos", "eos")):
            assert text.startswith(sofar)
    assert decoder.flush() == ""


def test_an_unfinished_character_comes_out_when_the_text_ends() -> None:
    ids = TOKENIZER.encode("🙂", add_bos=False)
    decoder = IncrementalDecoder(TOKENIZER)
    assert [decoder.push([i]) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert decoder.flush() == "\ufffd"
    assert TOKENIZER.decode(ids) == "🙂"


def test_special_tokens_are_skipped_or_shown() -> None:
    ids = [BOS, *TOKENIZER.encode("a", add_bos=False), EOS]
    assert TOKENIZER.decode(ids) == "a"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<bos>a<eos>"
    assert [i for i in range(320) if TOKENIZER.is_special(i)] == [0, 1, BOS, EOS]


def test_token_bytes_are_exact() -> None:
    text = "naïve 東京 🙂\n"
    ids = TOKENIZER.encode(text, add_bos=False)
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()
    assert TOKENIZER.token_bytes(EOS) == b"<eos>"
    assert TOKENIZER.token_bytes(10**6) == b""


def test_the_alphabet_has_every_byte_once() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["a"] == ord("a")
    assert alphabet["Ġ"] == ord(" ")


def test_bos_and_eos_can_be_given() -> None:
    tokenizer = Tokenizer.from_bytes(DATA, bos_token_id=7, eos_token_id=8)
    ids = tokenizer.encode("", add_eos=True)
    assert ids == [7, 8]


def test_a_tokenizer_without_bos_adds_none() -> None:
    data = json.loads(DATA)
    data["added_tokens"] = []
    for name in ("<pad>", "<unk>", "<bos>", "<eos>"):
        data["model"]["vocab"].pop(name, None)
    data["post_processor"] = None
    data["model"]["unk_token"] = None
    bare = Tokenizer.from_bytes(json.dumps(data).encode())
    assert bare.encode("Hi", add_eos=True) == TOKENIZER.encode("Hi", add_bos=False)


def test_vocab_size() -> None:
    assert TOKENIZER.vocab_size == 320


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        TOKENIZER.encode("a\udc80b")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"null",
        b"{" * 1000,
        DATA[:-100],
        DATA.replace(b'"BPE"', b'"Nothing"'),
        json.dumps(json.loads(DATA) | {"decoder": None}).encode(),
        json.dumps(json.loads(DATA) | {"decoder": {"type": "Fuse"}}).encode(),
    ],
)
def test_a_bad_file_is_one_line(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json: ") as caught:
        Tokenizer.from_bytes(data)
    assert "\n" not in str(caught.value)
