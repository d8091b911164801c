"""The seam to structured output: what the engine asks of a constraint. Knows no grammar and no library."""

from typing import Protocol

import numpy as np

from coordinator.engine.messages.request import ConstraintSource


class Matcher(Protocol):
    """One sequence's way through a constraint. Only `advance` changes it."""

    def fill_mask(self, mask_W: np.ndarray) -> None:
        """Writes which tokens may come next: bit t % 32 of int32 word t // 32. EOS is among them where the
        output may end; there is always at least one."""

    def advance(self, token_id: int) -> None:
        """Takes the token that was drawn, never EOS. It was allowed by the last mask."""

    @property
    def is_free(self) -> bool:
        """Whether any token may come next; the mask need not be asked then."""

    @property
    def may_end(self) -> bool:
        """Whether the output so far satisfies the constraint."""

    @property
    def must_end(self) -> bool:
        """Whether nothing but the end may follow."""


class Constraint(Protocol):
    """A compiled constraint, shared by the sequences of a request."""

    def matcher(self) -> Matcher:
        """A new sequence's matcher, at the beginning of the output."""


class ConstraintBuilder(Protocol):
    """Makes constraints of their sources; thread-safe. What is built belongs to one request."""

    def take(self, source: ConstraintSource) -> Constraint | None:
        """One that has been built already, if there is one: at once."""

    def build(self, source: ConstraintSource) -> Constraint:
        """May take seconds: never on the engine's thread while it serves. Raises ConstraintError."""
