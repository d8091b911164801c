"""How many bytes a second may be fetched, which may change at any time."""

import threading
import time
from collections.abc import Callable

from moe_model.errors import ConfigError
from moe_model.halt import Halt

# A wait looks so often whether it was halted, or the limit has changed, in seconds.
_LOOK_SECONDS = 0.1


class TokenBucket:
    """Bytes are taken before they are fetched; one that takes more than there is waits. Any thread."""

    def __init__(
        self, bytes_per_second: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """None: no limit. Raises ConfigError."""
        self._clock, self._lock = clock, threading.Condition()
        self._free_at = clock()
        self._rate: float | None = None
        self.limit(bytes_per_second)

    @property
    def bytes_per_second(self) -> float | None:
        return self._rate

    def limit(self, bytes_per_second: float | None) -> None:
        """From now on, also for those that wait. Raises ConfigError."""
        if bytes_per_second is not None and not bytes_per_second > 0:
            raise ConfigError(f"bytes_per_second: {bytes_per_second} is not positive")
        with self._lock:
            if self._rate is not None and bytes_per_second is not None:
                left = max(0.0, self._free_at - self._clock())
                self._free_at = self._clock() + left * self._rate / bytes_per_second
            self._rate = bytes_per_second

    def take(self, num_bytes: int, halt: Halt) -> None:
        """Returns when what was taken before has had its time. Raises HaltedError."""
        with self._lock:
            while self._rate is not None and (left := self._free_at - self._clock()) > 0:
                halt.check()
                self._lock.wait(min(left, _LOOK_SECONDS))
            halt.check()
            if self._rate is not None:
                self._free_at = max(self._free_at, self._clock()) + num_bytes / self._rate
