"""History: what each stream saw, token by token. Times are seconds of time.monotonic.

Arrays instead of objects: a night's load is millions of tokens.
"""

from array import array
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

Outcome = Literal["completed", "failed", "refused", "cancelled", "open"]
OK = "OK"
# What a server that protects itself says before it takes a request in.
REFUSED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class End:
    """A terminal status: gRPC's code by name, what else was said, and after how many tokens.

    `num_tokens` is the server's own count; None where it gave none.
    """

    at: float
    after: int
    code: str = OK
    reason: str = ""
    message: str = ""
    num_tokens: int | None = None


@dataclass(slots=True)
class Stream:
    """One request. `request` is its number among the different ones; `due` is when it should have been sent.

    A token's index is the number of tokens that the server said it had sent before.
    """

    request: int
    due: float
    admitted: float | None = None
    indices: "array[int]" = field(default_factory=lambda: array("q"))
    token_ids: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    # After how many tokens the server said that the sequence has finished; once, if all is well.
    finishes: list[int] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    was_cancelled: bool = False

    def token(self, index: int, token_id: int, at: float) -> None:
        self.indices.append(index)
        self.token_ids.append(token_id)
        self.times.append(at)

    def finish(self) -> None:
        self.finishes.append(len(self.token_ids))

    def end(
        self, at: float, code: str = OK, reason: str = "", message: str = "", num_tokens: int | None = None
    ) -> None:
        self.ends.append(End(at, len(self.token_ids), code, reason, message, num_tokens))

    @property
    def outcome(self) -> Outcome:
        """By its first end. `open`: it has none."""
        if not self.ends:
            return "cancelled" if self.was_cancelled else "open"
        first = self.ends[0]
        if first.code == OK:
            return "completed"
        if self.was_cancelled:
            return "cancelled"
        return "refused" if first.code == REFUSED and self.admitted is None else "failed"

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """From each token to the next, and from the last to a failure."""
        times = list(self.times)
        if times and self.outcome == "failed":
            times.append(self.ends[0].at)
        return list(pairwise(times))

    @property
    def first_wait(self) -> tuple[float, float] | None:
        """From when it was due to its first token; None if there was none."""
        return (self.due, self.times[0]) if self.times else None
