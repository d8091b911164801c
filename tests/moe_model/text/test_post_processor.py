"""What a post-processor puts before a text, as the `tokenizers` library does it."""

import json
from typing import Any

import pytest
from tokenizers import processors

from moe_model.errors import TokenizerError
from moe_model.text.tokenizer import Tokenizer
from tests.moe_model.text.libraries import byte_level

BOS, EOS, UNK = 1, 2, 3


def template(single: str) -> Any:
    special = [("<bos>", BOS), ("<eos>", EOS), ("<unk>", UNK)]
    return processors.TemplateProcessing(single=single, special_tokens=special)


BYTES = processors.ByteLevel(trim_offsets=False)


@pytest.mark.parametrize(
    ("processor", "prefix"),
    [
        (None, []),
        (BYTES, []),
        (template("$A"), []),
        (template("<bos> $A"), [BOS]),
        (template("<bos>:0 $A:0 <eos>:0"), [BOS]),
        (template("<unk> <bos> $A"), [UNK, BOS]),
        (template("$A <eos>"), []),
        (processors.Sequence([BYTES, template("<bos> $A <eos>")]), [BOS]),
        (processors.BertProcessing(("<eos>", EOS), ("<bos>", BOS)), [BOS]),
        (processors.RobertaProcessing(("<eos>", EOS), ("<bos>", BOS)), [BOS]),
    ],
)
def test_the_prefix_is_the_librarys(processor: Any, prefix: list[int]) -> None:
    library = byte_level()
    if processor is not None:
        library.post_processor = processor
    tokenizer = Tokenizer.from_bytes(library.to_str().encode(), adds_bos=False)
    bare, whole = tokenizer.encode("hé", add_bos=False), library.encode("hé").ids
    assert tokenizer.encode("hé") == prefix + bare == whole[: len(prefix) + len(bare)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Other"}, "post_processor is of type 'Other', which is not known here"),
        (7, "post_processor is of type None"),
        ({"type": "Sequence", "processors": 3}, "processors are no list of at most 64"),
        ({"type": "BertProcessing", "cls": ["<bos>"], "sep": ["<eos>", 2]}, "cls is no token and its id"),
        ({"type": "BertProcessing", "cls": ["<bos>", 999], "sep": ["<eos>", 2]}, "id 999 is not in [0, 300)"),
        ({"type": "TemplateProcessing", "single": []}, "single is not special tokens around one text"),
        (
            {"type": "Sequence", "processors": [{"type": "BertProcessing", "cls": ["<bos>", 1]}] * 2},
            "two processors put tokens before a text",
        ),
        (
            {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 2},
            "single is not special tokens around one text",
        ),
        (
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}],
                "special_tokens": {},
            },
            "a special token of single has no ids",
        ),
    ],
)
def test_what_is_not_understood_is_refused(change: object, message: str) -> None:
    file = json.loads(byte_level().to_str()) | {"post_processor": change}
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_bytes(json.dumps(file).encode(), vocab_size=300)
    assert str(caught.value).startswith("tokenizer.json: post_processor")
    assert message in str(caught.value)


@pytest.mark.long
def test_sequences_in_each_other_have_an_end() -> None:
    step: Any = {"type": "ByteLevel"}
    for _ in range(20):
        step = {"type": "Sequence", "processors": [step, step]}
    file = json.loads(byte_level().to_str()) | {"post_processor": step}
    with pytest.raises(TokenizerError, match="processors are no list"):
        Tokenizer.from_bytes(json.dumps(file).encode())
