"""What each token adds to the text that a caller sees."""

from moe_model.text.tokenizer import Tokenizer


class VisibleBytes:
    """The bytes of tokens; those of special tokens are left out where the caller does not see them."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens

    def __call__(self, token_id: int) -> bytes:
        if self._skip_special and self._tokenizer.is_special(token_id):
            return b""
        return self._tokenizer.token_bytes(token_id)
