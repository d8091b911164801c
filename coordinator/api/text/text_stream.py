"""TextStream: the text of one growing sequence, in whole characters, never more than a stop would leave.

Works on bytes: UTF-8 is self-synchronising, so a stop sequence is found in bytes exactly where it is in text.
"""

import codecs
from collections.abc import Callable, Sequence

from coordinator.engine.messages.output import TextMatch


class TextStream:
    """Bytes that may still become a character, or a stop sequence, are held back."""

    def __init__(
        self,
        visible_bytes: Callable[[int], bytes],
        stop_sequences: Sequence[bytes] = (),
        *,
        include_stop: bool = False,
    ) -> None:
        self._visible_bytes = visible_bytes
        # A stop that stays in the text is never taken back, so nothing has to wait for it.
        self._stops = () if include_stop else tuple(stop_sequences)
        self._include_stop = include_stop
        self._held = b""
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns what the new tokens make certain."""
        data = self._held + b"".join(map(self._visible_bytes, token_ids))
        keep = self._num_uncertain(data)
        self._held = data[len(data) - keep :]
        return self._utf8.decode(data[: len(data) - keep])

    def finish(self, token_ids: Sequence[int], stop: TextMatch | None = None) -> str:
        """Takes the last tokens; what a stop sequence cuts off is left out, half a character is U+FFFD."""
        data = self._held + b"".join(map(self._visible_bytes, token_ids))
        self._held = b""
        if stop is not None:
            cut = stop.num_after + (0 if self._include_stop else len(stop.text))
            data = data[: len(data) - cut]
        return self._utf8.decode(data, final=True)

    def _num_uncertain(self, data: bytes) -> int:
        """Length of the longest end that a stop sequence can begin with, or be.

        A stop that is complete and did not end the sequence, for its minimum was not reached, stays text.
        """
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(data)), 0, -1):
            end = data[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0
