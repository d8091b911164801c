"""When a call that a server could not take is sent again.

grpc's own retries are off: with them a stream of a client that blocks can outlive its deadline, and not even
cancelling it ends the wait.
"""

import random
import time
from collections.abc import Mapping

from expertmesh.errors import ClientError

MAX_ATTEMPTS = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


class Attempts:
    """The attempts of one call, all of them within its `timeout` in seconds."""

    def __init__(self, timeout: float, *, retries: bool) -> None:
        self._deadline = time.monotonic() + timeout
        self._num_left = MAX_ATTEMPTS if retries else 1
        self._pause = _FIRST_PAUSE

    @property
    def remaining(self) -> float:
        """Seconds that the next attempt has; never 0, which grpc takes for no deadline at all."""
        return max(0.001, self._deadline - time.monotonic())

    def pause(self, error: ClientError, *, heard: bool) -> float | None:
        """Seconds until the call may be sent again; None when it has failed for good.

        `heard`: a part of an answer has come, so another attempt could do the work twice.
        """
        self._num_left -= 1
        if error.code != "UNAVAILABLE" or heard or self._num_left <= 0:
            return None
        pause = self._pause * random.uniform(0.8, 1.2)  # noqa: S311 - so that many clients do not call at the same time
        self._pause = min(_LONGEST_PAUSE, self._pause * 2)
        if error.retry_after is not None:
            if error.retry_after < 0:
                return None
            pause = max(pause, error.retry_after)
        return pause if pause < self._deadline - time.monotonic() else None


def pushback(trailing: Mapping[str, str | bytes]) -> float | None:
    """The seconds that a server or a proxy asks to wait in grpc's own way; below 0: do not come again."""
    text = trailing.get(_PUSHBACK_KEY)
    if text is None:
        return None
    try:
        milliseconds = int(text)
    except ValueError:
        # grpc's own rule: a value that cannot be read forbids another attempt.
        return -1.0
    return milliseconds / 1000
