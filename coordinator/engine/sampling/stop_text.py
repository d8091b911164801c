"""Stop sequences over the bytes of tokens, wherever the tokens' boundaries are. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A stop sequence that was completed, and the bytes that its last token wrote after it."""

    text: bytes
    num_after: int


@dataclass(frozen=True, slots=True)
class StopText:
    """The stop sequences of a request, as UTF-8. `token_bytes`: what a token adds to the visible text."""

    sequences: tuple[bytes, ...]
    token_bytes: Callable[[int], bytes] = field(compare=False)

    def matcher(self) -> "TextMatcher":
        return TextMatcher(self)


class TextMatcher:
    """One sequence's text, as far back as a stop sequence can reach."""

    def __init__(self, stop: StopText) -> None:
        self._stop = stop
        self._reach = max(map(len, stop.sequences)) - 1
        self._tail = b""

    def push(self, token_id: int) -> TextMatch | None:
        """The stop sequence whose end comes first in the new token's bytes, of these the longest."""
        added = self._stop.token_bytes(token_id)
        start = len(self._tail)
        text = self._tail + added
        self._tail = text[-self._reach :] if self._reach else b""
        if not added:
            return None
        found = [(_first_end(text, s, start), -len(s), s) for s in self._stop.sequences]
        end, _, sequence = min(found)
        return None if end > len(text) else TextMatch(sequence, len(text) - end)


def _first_end(text: bytes, sequence: bytes, start: int) -> int:
    """Where the first match that ends after `start` ends; past the text when there is none."""
    at = text.find(sequence, max(0, start - len(sequence) + 1))
    return len(text) + 1 if at < 0 else at + len(sequence)
