"""When a worker that was lost is started again: at once the first time, and after a longer wait each time.

A circuit breaker (Nygard, Release It!, 2007) around a crash loop. Pure: the clock is passed in.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartOptions:
    """Seconds. After `max_failures` in a row, each within `healthy_after` of being ready, the circuit is
    open: one attempt per `longest_wait`."""

    moment: float = 0.1
    first_wait: float = 1.0
    longest_wait: float = 60.0
    healthy_after: float = 20.0
    max_failures: int = 5


class RestartPolicy:
    """Of one worker."""

    def __init__(self, options: RestartOptions | None = None) -> None:
        self._options = options or RestartOptions()
        self._num_failures = 0
        self._ready_at: float | None = None
        self.next_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it has failed too often."""
        return self._num_failures >= self._options.max_failures

    def ready(self, now: float) -> None:
        self._ready_at = now

    def soon(self, now: float) -> None:
        """It is on its way; try again in a moment, or when it is to be tried anyway, if that is later."""
        self.next_at = max(self.next_at, now + self._options.moment)

    def failed(self, now: float) -> None:
        """It was lost, or did not get ready. The first time it may come back at once."""
        options = self._options
        if self._ready_at is not None and now - self._ready_at >= options.healthy_after:
            self._num_failures = 0
        self._ready_at = None
        self._num_failures += 1
        wait = 0.0
        if self.is_open:
            wait = options.longest_wait
        elif self._num_failures > 1:
            wait = min(options.longest_wait, options.first_wait * 2 ** (self._num_failures - 2))
        self.next_at = now + wait
