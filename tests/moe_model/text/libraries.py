"""Small tokenizers of every kind, made with the `tokenizers` library."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from moe_model.files import strict_json

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CORPUS = (
    "the theme is in the inn, isn't it?",
    "do not go. I've been there; they're here!",
    "naïve café 東京 🙂 e\u0301 in  the\n then",
    "he 's 'm 've thing , . ! ?",
)
# Every way in which an added token looks for its place.
ADDED = (
    AddedToken("<tool>", special=False, lstrip=True),
    AddedToken("<end of tool>", special=False, rstrip=True),
    AddedToken("word", special=False, single_word=True),
    AddedToken("Ünï", special=False, normalized=True),
    AddedToken("▁odd Ġ", special=True, normalized=False),
)
MARK = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's: every byte has a token, a few pairs have one of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ã", "©"), ("ð", "Ł"), ("ðŁ", "Ļ")]
    tokens = [*SPECIAL, *alphabet, *(a + b for a, b in merges)]
    library = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(SPECIAL))
    return library


def _byte_level_in_a_sequence() -> tokenizers.Tokenizer:
    library = byte_level()
    library.decoder = decoders.Sequence([decoders.ByteLevel()])
    return library


def _trained(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any, normalizer: Any = None) -> Any:
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        library.normalizer = normalizer
    library.train_from_iterator(CORPUS, trainer)
    if decoder is not None:
        library.decoder = decoder
    return library


def _bpe(pre_tokenizer: Any, decoder: Any, *, with_bytes: bool = False, normalizer: Any = None) -> Any:
    special = [*SPECIAL, *(_BYTES if with_bytes else ())]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    model = models.BPE(unk_token="<unk>", byte_fallback=with_bytes, fuse_unk=True)
    library = _trained(model, trainer, pre_tokenizer, decoder, normalizer)
    return _without_special_bytes(library) if with_bytes else library


def _without_special_bytes(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Byte tokens are of the vocabulary and nothing more."""
    file = strict_json.loads(library.to_str().encode())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in SPECIAL]
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def _unigram(decoder: Any, *, with_bytes: bool = False) -> Any:
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    library = _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(MARK), decoder)
    if not with_bytes:
        return library
    file = strict_json.loads(library.to_str().encode())
    file["model"]["vocab"] += [[token, -20.0] for token in _BYTES]
    file["model"]["byte_fallback"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def _word_piece(decoder: Any, prefix: str = "##") -> Any:
    trainer = trainers.WordPieceTrainer(
        vocab_size=150,
        special_tokens=[*SPECIAL, "do not"],
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    model = models.WordPiece(unk_token="<unk>", continuing_subword_prefix=prefix)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(model, trainer, pre_tokenizer, decoder, normalizers.BertNormalizer(lowercase=False))


def _word_level() -> Any:
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
    return _trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.Whitespace(), None)


def _fallback(*more: Any) -> Any:
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    return decoders.Sequence(steps)


_MARKS = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
KINDS: Mapping[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte level": byte_level,
    "byte level in a sequence": _byte_level_in_a_sequence,
    "byte fallback of Llama": lambda: _bpe(
        pre_tokenizers.Metaspace(MARK, "first", split=False),
        _fallback(decoders.Strip(" ", 1, 0)),
        with_bytes=True,
    ),
    "byte fallback of Llama, older": lambda: _bpe(
        None, _fallback(decoders.Strip(" ", 1, 0)), with_bytes=True, normalizer=_MARKS
    ),
    "byte fallback of Gemma": lambda: _bpe(
        pre_tokenizers.Split(" ", "merged_with_previous"),
        _fallback(),
        with_bytes=True,
        normalizer=normalizers.Replace(" ", MARK),
    ),
    "byte fallback, three spaces": lambda: _bpe(
        pre_tokenizers.Metaspace(MARK, "first"), _fallback(decoders.Strip(" ", 3, 0)), with_bytes=True
    ),
    "metaspace, first": lambda: _bpe(
        pre_tokenizers.Metaspace(MARK, "first"), decoders.Metaspace(MARK, "first")
    ),
    "metaspace, always": lambda: _bpe(
        pre_tokenizers.Metaspace(MARK, "always"), decoders.Metaspace(MARK, "always")
    ),
    "metaspace, never": lambda: _bpe(
        pre_tokenizers.Metaspace(MARK, "never"), decoders.Metaspace(MARK, "never")
    ),
    "metaspace of another mark": lambda: _bpe(pre_tokenizers.Metaspace("_"), decoders.Metaspace("_")),
    "unigram": lambda: _unigram(decoders.Metaspace(MARK)),
    "unigram with bytes": lambda: _unigram(_fallback(decoders.Strip(" ", 1, 0)), with_bytes=True),
    "word piece, cleaned": lambda: _word_piece(decoders.WordPiece("##", cleanup=True)),
    "word piece": lambda: _word_piece(decoders.WordPiece("##", cleanup=False)),
    "word piece of another prefix": lambda: _word_piece(decoders.WordPiece("@@"), "@@"),
    "word level": _word_level,
}


def library_of(kind: str) -> tokenizers.Tokenizer:
    """One of KINDS with every sort of added token."""
    library = KINDS[kind]()
    library.add_tokens([token for token in ADDED if not token.special])
    library.add_special_tokens([token for token in ADDED if token.special])
    return library
