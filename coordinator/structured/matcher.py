"""One sequence's way through a built grammar: the engine's Matcher over the library's. Knows no text."""

from collections.abc import Iterable, Sequence

import numpy as np
from llguidance import LLMatcher

from coordinator.engine.messages.errors import ConstraintError
from coordinator.structured.library import clean


def mask_of(token_ids: Iterable[int], num_words: int) -> np.ndarray:
    """Bit t % 32 of int32 word t // 32 for each token t."""
    bits = np.zeros(32 * num_words, dtype=np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


class MaskRows:
    """What every mask of a model has in common: tokens that may be drawn, and the ends of an output."""

    def __init__(self, tokens: Sequence[bytes], eos_token_ids: Iterable[int]) -> None:
        self.num_words = -(-len(tokens) // 32)
        # The library counts one more token, its own end.
        self.num_library_words = -(-(len(tokens) + 1) // 32)
        self.text_W = mask_of((i for i, token in enumerate(tokens) if token), self.num_words)
        self.eos_W = mask_of(eos_token_ids, self.num_words)


class GrammarMatcher:
    """Computes each mask once, when the first one asks. Not thread-safe, and not shared."""

    def __init__(self, library: LLMatcher, rows: MaskRows) -> None:
        self._library = library
        self._rows = rows
        self._buffer = np.zeros(rows.num_library_words, dtype=np.int32)
        self._mask_W = self._buffer[: rows.num_words]
        self._is_current = False
        self._may_end = False
        self._goes_on = False
        self._failure: str | None = None

    def fill_mask(self, mask_W: np.ndarray) -> None:
        """Raises ConstraintError when this output cannot be continued: the library reached its limits, or no
        token of the vocabulary fits."""
        failure = self.failure
        if failure is not None:
            raise ConstraintError(failure)
        np.copyto(mask_W, self._mask_W)

    def advance(self, token_id: int) -> None:
        """What goes wrong is told by the next fill_mask."""
        if self._failure is None:
            self._is_current = False
            if not self._library.consume_token(token_id):
                self._fail(clean(self._library.get_error()))

    @property
    def is_free(self) -> bool:
        return False

    @property
    def may_end(self) -> bool:
        self._look()
        return self._may_end

    @property
    def must_end(self) -> bool:
        self._look()
        return self._may_end and not self._goes_on

    @property
    def failure(self) -> str | None:
        """Why the output cannot be continued, if so."""
        self._look()
        return self._failure

    def _look(self) -> None:
        """Computes the mask of this position. After an error, the library's mask would allow the end."""
        if self._is_current:
            return
        self._is_current = True
        library, buffer = self._library, self._buffer
        library.unsafe_compute_mask_ptr(buffer.ctypes.data, buffer.nbytes)
        if library.is_error():
            self._fail(f"the output became too complex for the grammar: {clean(library.get_error())}")
            return
        self._may_end = library.is_accepting()
        self._mask_W &= self._rows.text_W
        self._goes_on = bool(self._mask_W.any())
        if self._may_end:
            self._mask_W |= self._rows.eos_W
        elif not self._goes_on:
            self._fail("no token of this model's vocabulary can continue the output")

    def _fail(self, message: str) -> None:
        self._is_current, self._failure = True, message
        self._may_end = self._goes_on = False


class GrammarConstraint:
    """A built grammar that is never advanced itself, only copied. Copies share the lexer's states and their
    limit, which one output can use up for all: no two requests should share one."""

    def __init__(self, library: LLMatcher, rows: MaskRows) -> None:
        self._library = library
        self._rows = rows

    def matcher(self) -> GrammarMatcher:
        return GrammarMatcher(self._library.deep_copy(), self._rows)
