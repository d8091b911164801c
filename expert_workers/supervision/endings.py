"""Endings: why nothing is done to the workers any more. Belongs to the supervisor's thread."""

import logging
from collections.abc import Callable

from expert_workers.supervision.options import Published
from expert_workers.supervision.pending_changes import PendingChanges
from expert_workers.transports.base import Failure, FailureReason
from moe_model.errors import FencedError, WorkerStartError, WorldError

_log = logging.getLogger(__name__)


class Endings:
    """A start that fails, another coordinator that takes over, a cluster that is gone."""

    def __init__(self, pool: Published, pending: PendingChanges, over: Callable[[str], None] | None) -> None:
        """`over` is told why the workers can't be looked after any more, once."""
        self._pool, self._pending, self._tell = pool, pending, over
        self._is_over = False
        self.has_failed_to_start = False
        # Whether the workers are another coordinator's now. Any thread may read it.
        self.is_fenced = False

    @property
    def are_left_alone(self) -> bool:
        """Whether nothing is to be done to the workers from here on."""
        return self.is_fenced or self.has_failed_to_start

    def fail_start(self, failure: Failure) -> None:
        """The caller that waits for the start hears of it, and ends the workers that are its own."""
        self.is_fenced = failure.reason is FailureReason.FENCED
        self.has_failed_to_start = self._pending.fail_start(WorkerStartError(failure.message))

    def fence(self, failure: Failure) -> None:
        """Another coordinator has taken over."""
        if not self.is_fenced:
            self.is_fenced = True
            why = FencedError(failure.message)
            self.give_up(why)
            self.end(why)

    def give_up(self, why: WorldError) -> None:
        """What a step lacks from now on will not be there again; the first reason counts."""
        self._pool.give_up(why)

    def end(self, why: WorldError) -> None:
        """The workers can't be looked after any more; the first reason counts."""
        if self._is_over:
            return
        self._is_over = True
        _log.error("the expert workers are no longer ours to look after: %s", why)
        self.has_failed_to_start |= self._pending.fail_start(why)
        if self._tell is not None:
            self._tell(str(why))
