"""Text <-> token ids, and text that grows token by token without ever splitting a character.

Knows byte-level BPE (every token is a run of bytes) as the `tokenizers` library stores it.
"""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

import tokenizers

from moe_model.config import LIMITS
from moe_model.errors import TokenizerError
from moe_model.text.tokenizer_json import read_tokenizer_json


def byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE (GPT-2, Radford et al., 2019)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + offset): byte for offset, byte in enumerate(others)}


class TextEncoder(Protocol):
    """Encodes texts elsewhere, with a tokenizer that may take any time and memory for one."""

    def encode(self, text: str) -> list[int]:
        """Raises TokenizerError, and UnicodeEncodeError for half a surrogate pair."""

    def close(self) -> None: ...


# Makes one of a checked tokenizer.json and the name of its step that may take any time.
Confine = Callable[[str, str], TextEncoder]


class Tokenizer:
    """A byte-level tokenizer with BOS and EOS known by id."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        """`encoder` None: the backend encodes, in this process; else it is asked for its vocabulary only."""
        self._backend, self._encoder = backend, encoder
        self._bos = bos_token_id
        self._eos = eos_token_id
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes = _token_bytes(backend)
        self._longest = None if encoder is not None else _longest_token(backend, self._bytes)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        *,
        vocab_size: int = LIMITS["vocab_size"],
        confine: Confine | None = None,
    ) -> Self:
        """Reads a tokenizer.json. BOS and EOS default to its `<bos>` and `<eos>`.

        `vocab_size` is the model's: every id is less. `confine` is where texts are encoded with a file whose
        steps are not known to be quick; None: here as well, if the file is trusted. Raises TokenizerError.
        """
        file = read_tokenizer_json(data, vocab_size)
        encoder = None if file.unknown is None or confine is None else confine(file.core, file.unknown)
        backend = _build(file.core if encoder is None else file.bare, vocab_size)
        bos = backend.token_to_id("<bos>") if bos_token_id is None else bos_token_id
        eos = backend.token_to_id("<eos>") if eos_token_id is None else eos_token_id
        return cls(backend, bos, eos, encoder)

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
        """BOS + text by default; an EOS at the end of a prompt would tell the model to stop.

        Raises TokenizerError for text with half a surrogate pair, which is no Unicode, and for one that the
        tokenizer has no tokens for; TokenizerLimitError.
        """
        try:
            ids = self._encode(text)
        except (TypeError, UnicodeEncodeError):
            raise TokenizerError("text: has a lone surrogate, which is not Unicode") from None
        if add_bos and self._bos is not None:
            ids = [self._bos, *ids]
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
        decoder = IncrementalDecoder(self, skip_special_tokens=skip_special_tokens)
        return decoder.push(ids) + decoder.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token; none for an id that the vocabulary does not have."""
        return self._bytes.get(token_id, b"")

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


class IncrementalDecoder:
    """Text of a growing sequence: bytes that may still become a character are held back."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """Returns the whole characters that the new tokens complete."""
        kept = (i for i in ids if not (self._skip_special and self._tokenizer.is_special(i)))
        return self._utf8.decode(b"".join(map(self._tokenizer.token_bytes, kept)))

    def flush(self) -> str:
        """Ends the sequence: what is left of an unfinished character comes out as U+FFFD."""
        return self._utf8.decode(b"", final=True)


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


def _token_bytes(backend: tokenizers.Tokenizer) -> dict[int, bytes]:
    alphabet = byte_alphabet()
    table: dict[int, bytes] = {}
    for token, token_id in backend.get_vocab(with_added_tokens=True).items():
        if all(char in alphabet for char in token):
            table[token_id] = bytes(alphabet[char] for char in token)
        else:
            table[token_id] = token.encode("utf-8")
    return table


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
