"""Text <-> token ids, and text that grows token by token without ever splitting a character.

Every token is a run of bytes, as its kind says; the `tokenizers` library makes ids of text.
"""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

import tokenizers

from moe_model.config import LIMITS
from moe_model.errors import TokenizerError
from moe_model.text.token_kinds import BYTE_LEVEL, TokenKind, byte_alphabet
from moe_model.text.tokenizer_json import read_tokenizer_json

# Of a tokenizer that comes without settings.
BOS = "<bos>"


class TextEncoder(Protocol):
    """Encodes texts elsewhere, with a tokenizer that may take any time and memory for one."""

    def encode(self, text: str) -> list[int]:
        """Raises TokenizerError, and UnicodeEncodeError for half a surrogate pair."""

    def close(self) -> None: ...


# Makes one of a checked tokenizer.json and the name of its step that may take any time.
Confine = Callable[[str, str], TextEncoder]


class Tokenizer:
    """A tokenizer that knows what goes before a text, BOS as a rule, and EOS."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        prefix: Sequence[int] = (),
        eos_token_id: int | None = None,
        encoder: TextEncoder | None = None,
        kind: TokenKind = BYTE_LEVEL,
    ) -> None:
        """`encoder` None: the backend encodes, in this process; else it is asked for its vocabulary only."""
        self._backend, self._encoder, self._kind = backend, encoder, kind
        self._prefix = tuple(prefix)
        self._eos = eos_token_id
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        vocabulary = {token_id: token for token, token_id in backend.get_vocab().items()}
        # One that is sought in normalised text is shown as what it is there.
        vocabulary |= {token_id: backend.id_to_token(token_id) or "" for token_id in added}
        self._bytes = {token_id: kind.bytes_of(token) for token_id, token in vocabulary.items()}
        self._longest = None if encoder is not None else _longest_token(backend, self._bytes)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        *,
        bos_token: str = BOS,
        adds_bos: bool = True,
        vocab_size: int = LIMITS["vocab_size"],
        confine: Confine | None = None,
    ) -> Self:
        """Reads a tokenizer.json. EOS defaults to its `<eos>`.

        Before a text goes BOS by its id; without one, what the file's post-processor puts there; without any,
        its `bos_token` where `adds_bos` says so.

        `vocab_size` is the model's: every id is less. `confine` is where texts are encoded with a file whose
        steps are not known to be quick; None: here as well, if the file is trusted. Raises TokenizerError.
        """
        file = read_tokenizer_json(data, vocab_size)
        encoder = None if file.unknown is None or confine is None else confine(file.core, file.unknown)
        backend = _build(file.core if encoder is None else file.bare, vocab_size)
        eos = backend.token_to_id("<eos>") if eos_token_id is None else eos_token_id
        bos = backend.token_to_id(bos_token) if adds_bos and bos_token_id is None else bos_token_id
        by_itself = () if bos is None else (bos,)
        prefix = by_itself if bos_token_id is not None else file.prefix or by_itself
        return cls(backend, prefix, eos, encoder, file.kind)

    @property
    def waits(self) -> bool:
        """Whether to encode is to wait for another process, even for a short text."""
        return self._encoder is not None

    def close(self) -> None:
        """Ends what encodes elsewhere. Idempotent."""
        if self._encoder is not None:
            self._encoder.close()

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_bos: bool = True, add_eos: bool = False) -> list[int]:
        """With what goes before it, by default; an EOS at the end of a prompt would tell the model to stop.

        Raises TokenizerError for text with half a surrogate pair, which is no Unicode, and for one that the
        tokenizer has no tokens for; TokenizerLimitError.
        """
        try:
            ids = self._encode(text)
        except (TypeError, UnicodeEncodeError):
            raise TokenizerError("text: has a lone surrogate, which is not Unicode") from None
        if add_bos:
            ids = [*self._prefix, *ids]
        if add_eos and self._eos is not None:
            ids = [*ids, self._eos]
        return ids

    def _encode(self, text: str) -> list[int]:
        if self._encoder is not None:
            return self._encoder.encode(text)
        with _librarys_errors("text: "):
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
            return ids

    def least_tokens(self, num_bytes: int) -> int:
        """A text of so many bytes has at least so many tokens; what can be said without looking at it."""
        return 0 if self._longest is None else -(-num_bytes // self._longest)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """A whole text; without the space that the tokenizer has put before it, of a kind that does."""
        decoder = IncrementalDecoder(self, skip_special_tokens=skip_special_tokens, is_whole=True)
        return decoder.push(ids) + decoder.flush()

    @property
    def class_name(self) -> str:
        """Its kind and its model: ByteLevelBPE, WordPiece."""
        return self._kind.name + type(self._backend.model).__name__

    @property
    def strips(self) -> int:
        """How many spaces a whole text loses at its beginning, at most: they are not its own."""
        return self._kind.strips

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token, behind others; none for an id that the vocabulary does not have."""
        return self._bytes.get(token_id, b"")

    def first_bytes(self, token_id: int) -> bytes:
        """Those of a token with which a whole text begins."""
        token = self._backend.id_to_token(token_id) if token_id in self else None
        return b"" if token is None else self._kind.bytes_of(token, is_first=True)

    def __contains__(self, token_id: int) -> bool:
        """Whether the vocabulary has it; a model may have more ids."""
        return token_id in self._bytes

    def has_token(self, text: str) -> bool:
        """Whether that is one token of the vocabulary."""
        return self._backend.token_to_id(text) is not None

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is written so, if there is one."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self._special else None

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


class IncrementalDecoder:
    """Text of a growing sequence: bytes that may still become a character are held back.

    `is_whole`: the sequence is a text of its own, not what follows another.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, is_whole: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._is_first = is_whole
        self._num_strips = tokenizer.strips if is_whole else 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """Returns the whole characters that the new tokens complete."""
        return self._stripped(self._utf8.decode(b"".join(map(self._bytes_of, ids))))

    def flush(self) -> str:
        """Ends the sequence: what is left of an unfinished character comes out as U+FFFD."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id not in self._tokenizer or (self._skip_special and self._tokenizer.is_special(token_id)):
            return b""
        is_first, self._is_first = self._is_first, False
        return self._tokenizer.first_bytes(token_id) if is_first else self._tokenizer.token_bytes(token_id)

    def _stripped(self, text: str) -> str:
        """Without the spaces that are still to be lost."""
        if not self._num_strips:
            return text
        found = len(text) - len(text.lstrip(" "))
        lost = min(found, self._num_strips)
        self._num_strips = self._num_strips - lost if found == len(text) else 0
        return text[lost:]


def vocabulary_of(data: bytes, vocab_size: int = LIMITS["vocab_size"]) -> dict[str, int]:
    """All tokens of a tokenizer.json, without what may take any time. Raises TokenizerError."""
    vocabulary: dict[str, int] = _build(read_tokenizer_json(data, vocab_size).bare, vocab_size).get_vocab()
    return vocabulary


def _build(file: str, vocab_size: int) -> tokenizers.Tokenizer:
    with _librarys_errors("tokenizer.json: "):
        backend = tokenizers.Tokenizer.from_str(file)
    # The library may give an added token another id than the file does.
    token, token_id = max(backend.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if token_id >= vocab_size:
        raise TokenizerError(
            f"tokenizer.json: token {token[:80]!r} has id {token_id}, the model's vocab_size is {vocab_size}"
        )
    return backend


@contextmanager
def _librarys_errors(prefix: str) -> Iterator[None]:
    """The library raises bare Exception for a bad file, and its panics are not even that."""
    try:
        yield
    except (TypeError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(prefix + " ".join(str(error).split())[:200]) from None


def _longest_token(backend: tokenizers.Tokenizer, table: Mapping[int, bytes]) -> int | None:
    """In bytes; None where a text may lose some of its bytes on the way to tokens."""
    model, alphabet = backend.model, byte_alphabet()
    whole = (
        backend.normalizer is None
        and isinstance(backend.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel)
        and isinstance(model, tokenizers.models.BPE)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and all(backend.token_to_id(char) is not None for char in alphabet)
        and not any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
    )
    return max(map(len, table.values())) if whole else None
