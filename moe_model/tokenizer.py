"""Text <-> token ids, and text that grows token by token without ever splitting a character.

Knows byte-level BPE (every token is a run of bytes) as the `tokenizers` library stores it.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Self

import tokenizers

from moe_model.errors import TokenizerError


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


class Tokenizer:
    """A byte-level tokenizer with BOS and EOS known by id."""

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_token_id: int | None = None, eos_token_id: int | None = None
    ) -> None:
        self._backend = backend
        self._bos = bos_token_id
        self._eos = eos_token_id
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes = _token_bytes(backend)
        self._longest = _longest_token(backend, self._bytes)

    @classmethod
    def from_bytes(
        cls, data: bytes, bos_token_id: int | None = None, eos_token_id: int | None = None
    ) -> Self:
        """Reads a tokenizer.json. BOS and EOS default to its `<bos>` and `<eos>`. Raises TokenizerError."""
        try:
            backend = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            decoder = json.loads(backend.to_str())["decoder"]
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a bad file
            raise TokenizerError(f"tokenizer.json: {' '.join(str(error).split())[:200]}") from None
        if not decoder or decoder.get("type") != "ByteLevel":
            raise TokenizerError("tokenizer.json: decoder is not ByteLevel, the only kind known here")
        backend.no_padding()
        backend.no_truncation()
        bos = backend.token_to_id("<bos>") if bos_token_id is None else bos_token_id
        eos = backend.token_to_id("<eos>") if eos_token_id is None else eos_token_id
        return cls(backend, bos, eos)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_bos: bool = True, add_eos: bool = False) -> list[int]:
        """BOS + text by default; an EOS at the end of a prompt would tell the model to stop.

        Raises TokenizerError for text with half a surrogate pair, which is no Unicode.
        """
        try:
            ids = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError:
            raise TokenizerError("text: has a lone surrogate, which is not Unicode") from None
        if add_bos and self._bos is not None:
            ids = [self._bos, *ids]
        if add_eos and self._eos is not None:
            ids = [*ids, self._eos]
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
