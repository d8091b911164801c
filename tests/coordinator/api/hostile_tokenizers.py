"""Tokenizers that are made to hang or to fill the memory, by what becomes of each."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Not from tests.models, which loads torch: the memory of a process that reads this is measured.
GOLDEN = Path(__file__).parents[2] / "data" / "modularforge-tiny"
TEXT = "a" * 8192
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
File = dict[str, Any]


def golden() -> File:
    file: File = json.loads((GOLDEN / "tokenizer.json").read_bytes())
    return file


def changed(change: Callable[[File], object]) -> bytes:
    file = golden()
    change(file)
    return json.dumps(file).encode()


def with_normalizer(*steps: File) -> bytes:
    return changed(lambda file: file.update(normalizer={"type": "Sequence", "normalizers": list(steps)}))


def with_pattern(pattern: str) -> bytes:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, _BYTES]}
    return changed(lambda file: file.update(pre_tokenizer=steps))


def with_model(**model: Any) -> bytes:
    return changed(lambda file: file["model"].update(model))


def with_token(token_id: object) -> bytes:
    return changed(lambda file: file["model"]["vocab"].update(zzz=token_id))


def _nested(depth: int) -> bytes:
    inner = '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth
    return changed(lambda file: file.update(normalizer="HERE")).replace(b'"HERE"', inner.encode())


def _added(**token: Any) -> bytes:
    return changed(lambda file: file["added_tokens"].append(file["added_tokens"][0] | token))


def _replace(content: str, pattern: str = "a") -> File:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _decoders(*steps: File) -> File:
    return {"type": "Sequence", "decoders": list(steps)}


@dataclass(frozen=True, slots=True)
class Hostile:
    """`refused`: what is said when it is loaded, None: it loads. `fails`: what is said of TEXT, None: it has
    tokens; `is_certain`: it is said on a slow machine and a quick one alike."""

    data: bytes
    refused: str | None = None
    fails: str | None = None
    is_certain: bool = True


_LONG = "x" * (100 << 10)
HOSTILE: Mapping[str, Hostile] = {
    "an id of a thousand million": Hostile(with_token(10**9), "token 'zzz' has id 1000000000, the model's"),
    "an added id of four thousand million": Hostile(_added(id=4 * 10**9, content="<x>"), "has id 4000000000"),
    "an id beyond 64 bits": Hostile(with_token(10**30), "token 'zzz' has id 1"),
    "a negative id": Hostile(with_token(-1), "token 'zzz' has id -1"),
    "half an id": Hostile(with_token(7.5), "token 'zzz' has id 7.5"),
    "an id that is true": Hostile(with_token(True), "token 'zzz' has id True"),
    "an id that is no number": Hostile(with_token(float("nan")), "NaN is not a number"),
    "an id that is none": Hostile(with_token(None), "token 'zzz' has id None"),
    "a token twice": Hostile(
        (GOLDEN / "tokenizer.json").read_bytes().replace(b'"vocab": {', b'"vocab": {"<pad>": 4,', 1),
        "duplicate key '<pad>'",
    ),
    "a million merges": Hostile(with_model(merges=[["a", "b"]] * 10**6), "has more than 70656 entries"),
    "merges of nothing": Hostile(with_model(merges=[["zz", "zzz"]]), "out of vocabulary"),
    "a token of 100 kB": Hostile(
        changed(lambda file: file["model"]["vocab"].update({_LONG: 310})), "has 102400 characters, more than"
    ),
    "an added token of 100 kB": Hostile(_added(content=_LONG, id=310), "has 102400 characters, more than"),
    "steps fifty thousand deep": Hostile(_nested(50_000), "nested too deeply"),
    "steps a hundred deep": Hostile(_nested(100), "normalizer is nested too deeply"),
    "a thousand steps": Hostile(with_normalizer(*[{"type": "NFC"}] * 1000), "more than 32 steps"),
    "a prefix of 100 kB": Hostile(
        with_model(continuing_subword_prefix=_LONG), "continuing_subword_prefix is"
    ),
    "a suffix of 100 kB": Hostile(with_model(end_of_word_suffix=_LONG), "end_of_word_suffix is"),
    "an unknown token that is not there": Hostile(with_model(unk_token="zzz"), "unk_token 'zzz' is not in"),
    "other tokens every time": Hostile(with_model(dropout=0.5), "dropout is for training"),
    "words of any length": Hostile(
        with_model(type="WordPiece", max_input_chars_per_word=10**9), "max_input_chars_per_word 1000000000 is"
    ),
    "scores beyond numbers": Hostile(
        with_model(type="Unigram", vocab=[["a", -1e308]], byte_fallback=True), "`unk_id` is missing"
    ),
    "padding to a thousand million": Hostile(
        changed(lambda file: file["padding"].update(strategy={"Fixed": 10**9}, pad_to_multiple_of=10**9))
    ),
    "cut with any overlap": Hostile(
        changed(
            lambda file: file.update(
                truncation={"max_length": 4, "stride": 3, "strategy": "LongestFirst", "direction": "Right"}
            )
        )
    ),
    "a template of ten thousand ids": Hostile(
        changed(lambda file: file["post_processor"]["special_tokens"]["<bos>"].update(ids=[2] * 10_000)),
        "post_processor: a special token of single has no ids",
    ),
    "twice as long thirty times": Hostile(
        with_normalizer(*[_replace("aa")] * 30), None, "352 MiB are not enough|takes more than"
    ),
    "a letter as 100 kB": Hostile(with_normalizer(_replace(_LONG, "a")), None, "352 MiB|takes more than"),
    "bytes of bytes of bytes": Hostile(
        with_normalizer(*[{"type": "ByteLevel"}] * 25), "352 MiB are not enough|takes more than"
    ),
    "a damaged table of characters": Hostile(
        with_normalizer({"type": "Precompiled", "precompiled_charsmap": "AAAA" + "////" * 1000}),
        "normalizer: 'Precompiled'",
    ),
    "pieces of every length": Hostile(
        with_model(type="Unigram", unk_id=0, vocab=[["?", 0.0], *([("a" * n), -1.0] for n in range(1, 310))]),
    ),
    "pieces of 4096 characters": Hostile(
        with_model(
            type="Unigram", unk_id=0, vocab=[[chr(0x4E00 + n) + "ab" * 2047, -1.0] for n in range(310)]
        ),
        "bytes of tokens, at most",
    ),
    "a decoder that doubles thirty times": Hostile(
        changed(lambda file: file.update(decoder=_decoders(*[_replace("aa")] * 30))),
        "more than 4 times as long",
    ),
    "a decoder of a thousand steps": Hostile(
        changed(lambda file: file.update(decoder=_decoders(*[_decoders(*[_replace("b")] * 32)] * 32))),
        "decoder: has more than 32 steps",
    ),
    "words of 256 letters": Hostile(
        changed(
            lambda file: file.update(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "a{256}"}, "behavior": "Isolated"}
                | {"invert": False},
                model={"type": "WordPiece", "unk_token": "b", "continuing_subword_prefix": "##"}
                | {"max_input_chars_per_word": 256, "vocab": {"b": 4, "a": 5, "##a": 6}},
            )
        ),
    ),
    "a score that is no number": Hostile(
        with_model(type="Unigram", unk_id=0, vocab=[["?", 0.0], ["a", None]]),
        "vocab: entry 1 is no text and its",
    ),
    "a+ of a+": Hostile(with_pattern("(a+)+b"), None, "retry-limit|takes more than"),
    "a choice of a and aa": Hostile(with_pattern("(?:a|aa)+b"), None, "retry-limit|takes more than"),
    "counts of counts": Hostile(
        with_pattern("(((a{1000}){1000}){1000}){1000}"), None, "takes more than", is_certain=False
    ),
    "two hundred ways that fail": Hostile(
        with_pattern("|".join(f"a+{chr(0x4E00 + way)}" for way in range(200))), None, "takes more than"
    ),
}
