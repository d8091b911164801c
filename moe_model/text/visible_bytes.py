"""What each token adds to the text that a caller sees."""

from collections.abc import Collection

from moe_model.text.tokenizer import Tokenizer


class VisibleBytes:
    """The bytes of tokens; those of special tokens are left out where the caller does not see them.

    `shown` are the special tokens that are not left out.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool, shown: Collection[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._shown = shown

    def __call__(self, token_id: int) -> bytes:
        if self._skip_special and self._tokenizer.is_special(token_id) and token_id not in self._shown:
            return b""
        return self._tokenizer.token_bytes(token_id)
