"""Which tokenizer.json files are taken as they are, and which of their steps are known to be quick."""

import json
import time
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from moe_model.errors import TokenizerError
from moe_model.text.known_patterns import BY_MODEL
from moe_model.text.tokenizer import Tokenizer, vocabulary_of
from moe_model.text.tokenizer_json import read_tokenizer_json
from tests.models import GOLDEN

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
# As their makers publish them.
PUBLISHED = {
    "gpt2": ENDINGS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "qwen3.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # noqa: E501
    # As it stands in the file, where a line end is itself.
    "deepseek3": json.loads(
        r'''"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"'''  # noqa: E501
    ),
    "deepseek3, ideographs": "[一-龥぀-ゟ゠-ヿ]+",
    "digits": r"\p{N}{1,3}",
}


def golden() -> Any:
    return json.loads((GOLDEN / "tokenizer.json").read_bytes())


def with_steps(normalizer: Any, *pre_tokenizers: Any) -> bytes:
    steps = {"type": "Sequence", "pretokenizers": [*pre_tokenizers]}
    return json.dumps(golden() | {"normalizer": normalizer, "pre_tokenizer": steps}).encode()


def split(pattern: str, kind: str = "Regex") -> Any:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_published_tokenizers_encode_in_this_process(name: str, normalizer: Any) -> None:
    file = read_tokenizer_json(with_steps(normalizer, split(PUBLISHED[name]), BYTES), 320)
    assert file.unknown is None
    assert file.core == file.bare
    text = "It's 12345 naïve  東京\n\n x"
    tokenizer = Tokenizer.from_bytes(with_steps(normalizer, split(PUBLISHED[name]), BYTES), vocab_size=320)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (with_steps(None, split("(a+)+b"), BYTES), "pre_tokenizer: 'Split'"),
        (with_steps(None, split("x" * 17, "String"), BYTES), "pre_tokenizer: 'Split'"),
        (
            with_steps({"type": "Replace", "pattern": {"String": "a"}, "content": "b"}, BYTES),
            "normalizer: 'Repl",
        ),
        (with_steps({"type": "Prepend", "prepend": "x"}, BYTES), "normalizer: 'Prepend'"),
        (with_steps({"type": "NFKC"}, BYTES), "normalizer: 'NFKC'"),
        (with_steps(None, *[BYTES] * 5), "so many steps"),
        (with_steps(None, {"type": "Anything"}), "pre_tokenizer: 'Anything'"),
    ],
)
def test_other_steps_are_named_and_left_out_of_the_bare_file(data: bytes, step: str) -> None:
    file = read_tokenizer_json(data, 320)
    assert file.unknown is not None
    assert step in file.unknown
    bare = json.loads(file.bare)
    assert (bare["normalizer"], bare["pre_tokenizer"]) == (None, None)
    # Nothing of them is built for the tokens' sake.
    assert vocabulary_of(data, 320)["<eos>"] == 3


def test_an_id_that_the_library_gives_is_the_models_too() -> None:
    file = golden()
    file["added_tokens"].append(file["added_tokens"][0] | {"content": "<new>", "id": 7})
    assert vocabulary_of(json.dumps(file).encode(), 321)["<new>"] == 320
    with pytest.raises(TokenizerError, match="token '<new>' has id 320, the model's vocab_size is 320"):
        vocabulary_of(json.dumps(file).encode(), 320)


def test_a_large_vocabulary_is_not_too_large() -> None:
    file = golden()
    file["model"]["vocab"] |= {f"t{number:06}": number for number in range(320, 50_000)}
    assert len(vocabulary_of(json.dumps(file).encode(), 50_000)) == 50_000


# What a pattern that looks back, or ahead from everywhere, is slow with.
LONG = [
    " ",
    "\n",
    " \n",
    "a",
    "A",
    "aA",
    "e\u0301",
    "東",
    "あ漢",
    "!",
    "! ",
    "'",
    "'s",
    "1",
    "1a",
    "\x00",
    " \u0301",
    "\ufeff ",
]


@pytest.mark.parametrize("name", BY_MODEL)
def test_a_known_pattern_takes_time_in_proportion(name: str) -> None:
    """A few milliseconds for 32,768 characters; what goes as their square takes a second."""
    split = pre_tokenizers.Split(tokenizers.Regex(BY_MODEL[name]), "isolated")
    for unit in LONG:
        text = (unit * (1 << 15))[: 1 << 15] + "東"
        # The shortest of three: the first one also pays for what the library sets up.
        assert min(_seconds(split, text) for _ in range(3)) < 0.4, unit


def _seconds(split: pre_tokenizers.PreTokenizer, text: str) -> float:
    start = time.process_time()
    split.pre_tokenize_str(text)
    return time.process_time() - start
