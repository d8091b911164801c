"""Stop sequences over the bytes of tokens, wherever the tokens' boundaries are. Pure."""

from collections.abc import Callable, Sequence

from coordinator.engine.messages.output import TextMatch


class TextMatcher:
    """One sequence's text, as far back as a stop sequence can reach."""

    def __init__(self, stops: Sequence[bytes], visible_bytes: Callable[[int], bytes]) -> None:
        """`visible_bytes`: what a token adds to the visible text."""
        self._stops = tuple(stops)
        self._visible_bytes = visible_bytes
        self._reach = max(map(len, stops)) - 1
        self._tail = b""

    def push(self, token_id: int) -> TextMatch | None:
        """The stop sequence whose end comes first in the new token's bytes, of these the longest."""
        added = self._visible_bytes(token_id)
        start = len(self._tail)
        text = self._tail + added
        self._tail = text[-self._reach :] if self._reach else b""
        if not added:
            return None
        found = [(_first_end(text, stop, start), -len(stop), stop) for stop in self._stops]
        end, _, stop = min(found)
        return None if end > len(text) else TextMatch(stop, len(text) - end)


def _first_end(text: bytes, stop: bytes, start: int) -> int:
    """Where the first match that ends after `start` ends; past the text when there is none."""
    at = text.find(stop, max(0, start - len(stop) + 1))
    return len(text) + 1 if at < 0 else at + len(stop)
