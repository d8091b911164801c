"""Patience: how long lost experts are waited for. The one clock of that wait."""

import logging
import time
from collections.abc import Callable

from expert_workers.dispatch.options import PoolOptions

_log = logging.getLogger(__name__)


class Patience:
    """Belongs to the pool's thread. Seconds, from the first step that lacks experts to one that does not.
    `clock`: what tells the time; a simulation has its own."""

    def __init__(self, options: PoolOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._longest = options.wait_timeout if options.on_loss.waits else 0.0
        self._inside = min(options.rescue_patience, self._longest)
        self._since: float | None = None

    @property
    def left(self) -> float:
        """All of it while nothing is waited for."""
        return self._longest - self._waited

    @property
    def left_inside(self) -> float:
        """What a step may wait inside for what it lacks."""
        return self._inside - self._waited

    def begin(self) -> None:
        """A step lacks experts."""
        if self._since is None and self._longest:
            self._since = self._clock()
            _log.warning("experts lost; waiting at most %g s for them", self._longest)

    def end(self) -> None:
        """The next loss is waited for anew."""
        self._since = None

    @property
    def _waited(self) -> float:
        return 0.0 if self._since is None else self._clock() - self._since
