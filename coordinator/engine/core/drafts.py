"""Drafts by prompt lookup: what followed the last tokens of a sequence where they stood before. Pure, without
a model: what it says is worth computing where the text repeats itself.
"""

# Tokens of the longest n-gram that is looked up; shorter ones are looked up where a longer one is new.
LONGEST = 3
# Tokens of a sequence that one lookup takes up, so that a long prompt keeps no step waiting.
TAKEN_AT_ONCE = 256
_ID_BITS = 32


class PromptLookup:
    """Of one sequence. `token_ids` are its prompt and output, a list that only grows."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids
        # By the number of its tokens, less one: each n-gram, as one number, and the place after the last one
        # that something follows.
        self._places: tuple[dict[int, int], ...] = tuple({} for _ in range(LONGEST))
        self._num_taken = 0

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come next; none while the prompt has not been taken up, or where the
        last token is a new one. What was drafted counts as if it stood there, so that a loop goes on."""
        if not self._take_up():
            return ()
        token_ids = self._token_ids
        place = self._place()
        if place is None:
            return ()
        drafted = token_ids[place : place + most]
        period = len(token_ids) - place
        while len(drafted) < most:
            drafted.append(drafted[len(drafted) - period])
        return tuple(drafted)

    def _place(self) -> int | None:
        """Where the longest of the last n-grams that stood before was followed by something."""
        end = len(self._token_ids)
        for length in range(min(LONGEST, end), 0, -1):
            place = self._places[length - 1].get(self._number(end, length))
            if place is not None:
                return place
        return None

    def _take_up(self) -> bool:
        """Takes up n-grams that something follows; False while there are more."""
        first, end = self._num_taken + 1, len(self._token_ids)
        last = min(end, first + TAKEN_AT_ONCE)
        for place in range(first, last):
            for length in range(1, min(LONGEST, place) + 1):
                self._places[length - 1][self._number(place, length)] = place
        self._num_taken = max(self._num_taken, last - 1)
        return last == end

    def _number(self, end: int, length: int) -> int:
        """The n-gram before place `end`."""
        number = 0
        for token_id in self._token_ids[end - length : end]:
            number = number << _ID_BITS | token_id
        return number
