"""What of an output is free before its constraint: a thought, and text up to the mark that calls begin with.

While an output is free, its tokens' text is looked at and nothing else: no grammar, and no mask.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

import numpy as np

from coordinator.engine.messages.request import FreePart
from coordinator.structured.matcher import GrammarConstraint, GrammarMatcher, MaskRows

# Text of a token, special ones too.
TokenText = Callable[[int], bytes]


class _State(Enum):
    # A thought may begin; the constraint may as well.
    OPEN = auto()
    # A thought may begin, or text.
    BEGIN = auto()
    THOUGHT = auto()
    TEXT = auto()
    HELD = auto()
    # The mark came in a way that the grammar cannot go on from.
    LOOSE = auto()


class FreeMatcher:
    """The engine's Matcher of an output that begins free. Not thread-safe, and not shared."""

    def __init__(
        self,
        grammar: GrammarMatcher,
        free: FreePart,
        token_text: TokenText,
        think_id: int | None,
        rows: MaskRows,
    ) -> None:
        self._grammar = grammar
        self._free = free
        self._token_text = token_text
        self._think_id = think_id
        self._rows = rows
        self._text = b""
        # Tokens in which a mark may have begun.
        self._recent: deque[tuple[int, bytes]] = deque()
        self._state = self._first()

    def _first(self) -> _State:
        free = self._free
        if free.is_thinking:
            return _State.THOUGHT
        if free.until:
            return _State.BEGIN if free.think_begin else _State.TEXT
        return _State.OPEN if self._think_id is not None else _State.HELD

    @property
    def is_free(self) -> bool:
        """Whether any token may come next, the end too."""
        if self._state in (_State.BEGIN, _State.TEXT, _State.LOOSE):
            return True
        return self._state is _State.THOUGHT and bool(self._free.until)

    def fill_mask(self, mask_W: np.ndarray) -> None:
        """Raises ConstraintError as the grammar's does."""
        if self.is_free:
            mask_W[:] = -1
        elif self._state is _State.THOUGHT:
            # A thought alone is no answer.
            np.copyto(mask_W, ~self._rows.eos_W)
        else:
            self._grammar.fill_mask(mask_W)
            if self._state is _State.OPEN and self._think_id is not None:
                words = mask_W.view(np.uint32)
                words[self._think_id // 32] |= np.uint32(1 << self._think_id % 32)

    def advance(self, token_id: int) -> None:
        match self._state:
            case _State.HELD:
                self._grammar.advance(token_id)
            case _State.OPEN if token_id == self._think_id:
                self._state = _State.THOUGHT
            case _State.OPEN:
                self._state = _State.HELD
                self._grammar.advance(token_id)
            case _State.BEGIN:
                self._begin(token_id)
            case _State.THOUGHT:
                self._thought(token_id)
            case _State.TEXT:
                self._look(token_id, self._token_text(token_id))

    @property
    def may_end(self) -> bool:
        return self.is_free or (self._state in (_State.HELD, _State.OPEN) and self._grammar.may_end)

    @property
    def must_end(self) -> bool:
        return self._state is _State.HELD and self._grammar.must_end

    def _begin(self, token_id: int) -> None:
        """A thought is the first thing, if there is one."""
        data, mark = self._token_text(token_id), self._free.think_begin.encode()
        self._text = (self._text + data).lstrip()
        self._recent.append((token_id, data))
        if self._text.startswith(mark):
            self._state, self._text = _State.THOUGHT, self._text[len(mark) :]
            self._recent.clear()
        elif not mark.startswith(self._text):
            self._state = _State.TEXT
            tokens, self._recent, self._text = self._recent, deque(), b""
            for one, text in tokens:
                if self._state is _State.TEXT:
                    self._look(one, text)
                else:
                    self.advance(one)

    def _thought(self, token_id: int) -> None:
        mark = self._free.think_end.encode()
        self._text += self._token_text(token_id)
        if mark in self._text:
            self._text = b""
            self._state = _State.TEXT if self._free.until else _State.HELD
        else:
            self._text = self._text[-len(mark) + 1 :] if len(mark) > 1 else b""

    def _look(self, token_id: int, data: bytes) -> None:
        """Whether the mark has come, and from which token on."""
        mark = self._free.until.encode()
        self._recent.append((token_id, data))
        text = b"".join(each for _, each in self._recent)
        place = text.find(mark)
        if place < 0:
            num_bytes = len(text)
            while self._recent and num_bytes - len(self._recent[0][1]) >= len(mark) - 1:
                num_bytes -= len(self._recent.popleft()[1])
            return
        while len(self._recent[0][1]) <= place:
            place -= len(self._recent.popleft()[1])
        self._state = _State.HELD if self._fits() else _State.LOOSE
        self._recent.clear()

    def _fits(self) -> bool:
        """Whether the grammar takes the tokens of the mark, and what came with them."""
        for token_id, _ in self._recent:
            self._grammar.advance(token_id)
        return self._grammar.failure is None


class FreeConstraint:
    """A built constraint whose outputs begin free."""

    def __init__(
        self,
        held: GrammarConstraint,
        free: FreePart,
        token_text: TokenText,
        think_id: int | None,
        rows: MaskRows,
    ) -> None:
        """`think_id`: the token that a thought begins with, if one does."""
        self._held = held
        self._free = free
        self._token_text = token_text
        self._think_id = think_id
        self._rows = rows

    def matcher(self) -> FreeMatcher:
        """A new sequence's."""
        return FreeMatcher(self._held.matcher(), self._free, self._token_text, self._think_id, self._rows)
