"""Every kind of tokenizer against the `tokenizers` library: ids, whole texts, and texts in pieces."""

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from moe_model.errors import TokenizerError
from moe_model.text.tokenizer import IncrementalDecoder, Tokenizer
from moe_model.text.tokenizer_json import ids_of, read_tokenizer_json
from tests.moe_model.text.libraries import CORPUS, KINDS, library_of

TEXT = (
    st.text(max_size=20)
    | st.sampled_from(
        [
            *CORPUS,
            " the",
            "  in",
            "👩\u200d👩\u200d👧 e\u0301\u0323",
            "<tool> x <end of tool>  word words Ünï",
        ]
    )
    | st.text("the n'.,?! i\ne\u0301é東🙂▁_#@<", max_size=20)
)
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@cache
def both(kind: str) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    library = library_of(kind)
    return library, Tokenizer.from_bytes(library.to_str().encode(), adds_bos=False)


@st.composite
def some_ids(draw: st.DrawFn, kind: str) -> list[int]:
    """Texts, special tokens in the middle, ids of no token."""
    library, _ = both(kind)
    size = library.get_vocab_size()
    texts = TEXT.map(lambda text: library.encode(text, add_special_tokens=False).ids)
    any_ids = st.lists(st.integers(0, size + 20), max_size=4)
    special = st.sampled_from(["<eos>", "<unk>", "▁odd Ġ", "<tool>"]).map(
        lambda t: [library.token_to_id(t) or 0]
    )
    return [each for part in draw(st.lists(texts | any_ids | special, max_size=5)) for each in part]


def is_utf8(library: tokenizers.Tokenizer, ids: Sequence[int], *, skip: bool) -> bool:
    """Whether each run of byte tokens is characters; of one that is not, the library keeps nothing."""
    run = bytearray()
    added = library.get_added_tokens_decoder()
    tokens = [library.id_to_token(i) for i in ids if not (skip and i in added and added[i].special)]
    for token in [*(token for token in tokens if token is not None), ""]:
        byte = _BYTE.fullmatch(token)
        if byte is not None:
            run += bytes.fromhex(byte[1])
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return False
        run.clear()
    return True


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT)
def test_ids_are_the_librarys(kind: str, text: str) -> None:
    library, tokenizer = both(kind)
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
def test_a_whole_text_is_the_librarys(kind: str, data: st.DataObject, skip: bool) -> None:
    library, tokenizer = both(kind)
    ids = data.draw(some_ids(kind))
    found = tokenizer.decode(ids, skip_special_tokens=skip)
    if tokenizer.class_name.startswith("ByteFallback") and not is_utf8(library, ids, skip=skip):
        assert "\ufffd" in found
    else:
        assert found == library.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
def test_pieces_add_up_to_the_whole(kind: str, data: st.DataObject, skip: bool) -> None:
    _, tokenizer = both(kind)
    ids = data.draw(some_ids(kind))
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip, is_whole=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=len(ids))))
    pieces = [decoder.push(ids[i:j]) for i, j in pairwise([0, *cuts, len(ids)])]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_follows_a_text_is_the_rest_of_the_whole(kind: str, data: st.DataObject) -> None:
    """A generated text: the prompt's last token decides whether it begins with a space."""
    _, tokenizer = both(kind)
    prompt, ids = data.draw(some_ids(kind)), data.draw(some_ids(kind))
    start = tokenizer.decode([*prompt, *tokenizer.encode("the")])
    follows = IncrementalDecoder(tokenizer)
    whole = tokenizer.decode([*prompt, *tokenizer.encode("the"), *ids])
    assert whole == start + follows.push(ids) + follows.flush()


def test_bytes_that_are_no_character_leave_the_others() -> None:
    """The library makes U+FFFD of the whole run; a text that has been told is not taken back."""
    library, tokenizer = both("byte fallback of Llama")
    ids = [library.token_to_id(f"<0x{byte:02X}>") or 0 for byte in (*"東".encode(), 0xFF, 0x41)]
    assert tokenizer.decode(ids) == "東\ufffdA"
    assert library.decode(ids) == "\ufffd" * 5


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_no_token_has(kind: str) -> None:
    library, tokenizer = both(kind)
    beyond = [library.get_vocab_size(), 1 << 20, 1 << 40]
    assert tokenizer.decode(beyond) == ""
    assert [tokenizer.token_bytes(i) for i in beyond] == [b""] * 3
    assert not any(tokenizer.is_special(i) for i in beyond)
    assert [tokenizer.first_bytes(i) for i in beyond] == [b""] * 3


def with_decoder(decoder: Any, kind: str = "byte fallback of Llama") -> bytes:
    return json.dumps(json.loads(library_of(kind).to_str()) | {"decoder": decoder}).encode()


STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FUSE, BYTES = {"type": "Fuse"}, {"type": "ByteFallback"}


def sequence(*steps: Any) -> Any:
    return {"type": "Sequence", "decoders": [*steps]}


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "decoder: there is none"),
        (3, "decoder: 3 is no step"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "decoder: 'BPEDecoder' is no step that is known here"),
        ({"type": "CTC"}, "decoder: 'CTC' is no step"),
        (FUSE, "decoder says nothing of how tokens become text"),
        (sequence(), "decoder says nothing"),
        (sequence(BYTES, REPLACE, FUSE), "decoder: 'ByteFallback' is no step that is known here, or not in"),
        (sequence(FUSE, BYTES), "decoder: 'Fuse' is no step"),
        (sequence(REPLACE, BYTES, STRIP), "decoder: Strip is known only behind Fuse"),
        (sequence(REPLACE, BYTES, FUSE, STRIP | {"stop": 1}), "decoder: Strip is known only for at most 64"),
        (
            sequence(REPLACE, BYTES, FUSE, STRIP | {"content": "x"}),
            "decoder: Strip is known only for at most",
        ),
        (sequence(REPLACE | {"pattern": {"Regex": "a"}}, BYTES), "decoder: String is no text of 1 to 16"),
        (sequence(REPLACE | {"content": "x" * 17}, BYTES), "decoder: content is no text of 0 to 16"),
        (sequence({"type": "ByteLevel"}, BYTES), "decoder: 'ByteLevel' is no step"),
        (sequence(*[FUSE] * 33), "decoder: a Sequence has no list of at most 32"),
        (sequence(*[sequence(*[REPLACE] * 20)] * 20), "decoder: has more than 32 steps"),
        (
            sequence(*[REPLACE | {"content": "▁▁"}] * 3, BYTES),
            "decoder: makes tokens more than 4 times",
        ),
    ],
)
def test_another_decoder_is_refused_by_its_step(decoder: Any, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_bytes(with_decoder(decoder))
    assert str(caught.value).startswith(f"tokenizer.json: {message}")


def test_decoders_in_each_other_have_an_end() -> None:
    decoder = FUSE
    for _ in range(40):
        decoder = sequence(decoder)
    with pytest.raises(TokenizerError, match="is no step that is known here"):
        Tokenizer.from_bytes(with_decoder(decoder))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("byte level", "ByteLevelBPE"),
        ("byte fallback of Llama", "ByteFallbackBPE"),
        ("metaspace, first", "BPE"),
        ("unigram", "Unigram"),
        ("word piece", "WordPiece"),
        ("word level", "WordLevel"),
    ],
)
def test_class_names(kind: str, name: str) -> None:
    assert both(kind)[1].class_name == name


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_found_without_building_anything(kind: str) -> None:
    library = library_of(kind)
    texts = [*library.get_vocab(), "no token of it"]
    assert ids_of(library.to_str().encode(), texts) == library.get_vocab()


SLOW = {
    "unigram": "model: 'Unigram'",
    "unigram with bytes": "model: 'Unigram'",
    "word piece": "normalizer: 'BertNormalizer'",
    "word piece, cleaned": "normalizer: 'BertNormalizer'",
    "word piece of another prefix": "normalizer: 'BertNormalizer'",
    "metaspace of another mark": "pre_tokenizer: 'Metaspace'",
}


@pytest.mark.parametrize("kind", KINDS)
def test_which_are_known_to_be_quick(kind: str) -> None:
    assert read_tokenizer_json(library_of(kind).to_str().encode()).unknown == SLOW.get(kind)


def test_word_pieces_are_slow_by_themselves() -> None:
    file = json.loads(library_of("word piece").to_str()) | {"normalizer": None, "pre_tokenizer": None}
    assert read_tokenizer_json(json.dumps(file).encode()).unknown == "model: 'WordPiece'"
