"""Violations: everything that is wrong with one message, so that a caller mends it in one go."""

import re
from collections.abc import Sequence
from itertools import islice

from coordinator.api.shared.errors import ApiError, Reason, Violation

MAX_VIOLATIONS = 16
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Violations:
    """Collects; the first one gives the error its reason and its text."""

    def __init__(self) -> None:
        self._found: list[Violation] = []
        self._reason = Reason.INVALID_FIELD
        self._metadata: dict[str, str] = {}
        self._count = 0
        self._counted_all = True

    def add(self, field: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> None:
        if not self._found:
            self._reason = reason
        if len(self._found) < MAX_VIOLATIONS:
            self._found.append(Violation(field, description))
        self._count += 1

    def check(self, fine: bool, field: str, value: float, limits: str) -> None:
        """`fine` is a comparison that is false for NaN."""
        if not fine:
            self.add(field, f"{value} is not in {limits}")

    def check_token_ids(self, field: str, token_ids: Sequence[int], vocab_size: int) -> None:
        """Looks no further than for what can be shown: the list may be a million ids long."""
        wrong = ((index, token_id) for index, token_id in enumerate(token_ids) if token_id >= vocab_size)
        for index, token_id in islice(wrong, MAX_VIOLATIONS):
            self.add_token_id(f"{field}[{index}]", token_id, vocab_size)
        self._counted_all &= next(wrong, None) is None

    def check_texts(self, field: str, texts: Sequence[str], name: str, most: int, most_bytes: int) -> None:
        """At most so many, each of 1 to `most_bytes` bytes; `name` is what several are called."""
        if len(texts) > most:
            self.add(field, f"{len(texts)} {name} are more than {most}")
            return
        for index, text in enumerate(texts):
            num_bytes = len(text.encode())
            fine = 1 <= num_bytes <= most_bytes
            self.check(fine, f"{field}[{index}]", num_bytes, f"[1, {most_bytes}] bytes")

    def add_token_id(self, field: str, token_id: int, vocab_size: int) -> None:
        self._metadata["vocab_size"] = str(vocab_size)
        self.add(field, f"{token_id} is not in [0, {vocab_size})", Reason.TOKEN_ID_OUT_OF_RANGE)

    def check_request_id(self, field: str, value: str) -> None:
        if value and not REQUEST_ID.fullmatch(value):
            self.add(field, "is not 1 to 128 of the characters A-Z a-z 0-9 . _ : -")

    def raise_if_any(self) -> None:
        if not self._found:
            return
        first = self._found[0]
        least = "" if self._counted_all else "at least "
        more = f" (and {least}{self._count - 1} more)" if self._count > 1 else ""
        message = f"{first.field}: {first.description}{more}"
        raise ApiError.of(self._reason, message, metadata=self._metadata, violations=tuple(self._found))
