"""A tokenizer's process: builds the tokenizer.json that its first frame holds, then encodes text by text.

A reply is one byte, 0 or 1. Behind 0 are token ids, four bytes each in the machine's own order; behind 1 is
what went wrong.
"""

from array import array

import tokenizers

from coordinator.confined.child import Limits, run

LIMITS = Limits(address_space=352 << 20, cpu_seconds=1.0)
MAX_WORDS = 200
DONE, FAILED = b"\0", b"\1"


class Encoder:
    """Takes the tokenizer's JSON first, then texts in UTF-8."""

    def __init__(self) -> None:
        self._backend: tokenizers.Tokenizer | None = None
        self._refusal: bytes | None = None

    def __call__(self, question: bytes) -> bytes:
        """Every error ends here: the library's panics are no Exceptions."""
        if self._refusal is not None:
            return self._refusal
        is_first = self._backend is None
        try:
            return DONE + self._answer(question.decode())
        except BaseException as error:  # noqa: BLE001
            answer = FAILED + " ".join(str(error).split())[:MAX_WORDS].encode(errors="replace")
        if is_first:
            # No text may take the file's place.
            self._refusal = answer
        return answer

    def _answer(self, question: str) -> bytes:
        if self._backend is None:
            self._backend = tokenizers.Tokenizer.from_str(question)
            return b""
        encoded = self._backend.encode_batch_fast([question], add_special_tokens=False)
        return array("I", encoded[0].ids).tobytes()


if __name__ == "__main__":
    run(Encoder(), LIMITS)
