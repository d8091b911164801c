"""Which experts a request may use. Needs no torch: it travels in messages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpertSelection:
    """Which experts may serve a request, in every layer, and how many per token; None leaves as it is.

    `allowed` is sorted and not empty.
    """

    allowed: tuple[int, ...] | None = None
    top_k: int | None = None
