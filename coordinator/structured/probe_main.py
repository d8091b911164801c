"""The probe's process: builds every grammar it is sent and says what came of it. The first frame holds the
vocabulary."""

import json

from llguidance import LLTokenizer

from coordinator.confined.child import Limits, run
from coordinator.engine.messages.errors import ConstraintError
from coordinator.structured.library import build, make_tokenizer

LIMITS = Limits(
    address_space=1 << 30,
    # The server that asked has long given up, or is no more.
    cpu_seconds=10,
    # Smaller than any stack that a thread of the server has: what fits here does not overflow there.
    stack_bytes=1 << 20,
)


class Builder:
    """Replies with nothing to the vocabulary and to each good grammar, else with why it is refused."""

    def __init__(self) -> None:
        self._tokenizer: LLTokenizer | None = None

    def __call__(self, text: bytes) -> bytes:
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer([token.encode("latin-1") for token in json.loads(text)])
            return b""
        try:
            build(self._tokenizer, text.decode()).deep_copy()
        except ConstraintError as error:
            return str(error).encode()
        return b""


if __name__ == "__main__":
    run(Builder(), LIMITS)
