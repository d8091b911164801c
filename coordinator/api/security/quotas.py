"""Quotas: how much one API key may ask for. Lives on one event loop.

Rates are token buckets that hold one second of requests and one minute of tokens.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from coordinator.api.shared.errors import ApiError, Quota, Reason
from coordinator.config.key_limits import Limits

# When a place is given back is not known.
CONCURRENT_RETRY_SECONDS = 1.0


class Quotas(Protocol):
    """Asked before a request begins, and told what it took."""

    def enter(self, key_id: str) -> AbstractContextManager[None]:
        """Holds a place while the request runs. Raises QUOTA_EXCEEDED."""

    def spent(self, key_id: str, num_tokens: int) -> None: ...


class NoQuotas:
    """For servers without keys."""

    def enter(self, key_id: str) -> AbstractContextManager[None]:
        return nullcontext()

    def spent(self, key_id: str, num_tokens: int) -> None:
        return None


class KeyQuotas:
    """The limits of named keys. `limits_of` is asked anew each time: keys may change while serving."""

    def __init__(
        self, limits_of: Callable[[str], Limits], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits_of = limits_of
        self._clock = clock
        self._usages: dict[str, _Usage] = {}
        self._running: Counter[str] = Counter()

    @contextmanager
    def enter(self, key_id: str) -> Iterator[None]:
        self._usage(key_id).begin(self._running[key_id])
        self._running[key_id] += 1
        try:
            yield
        finally:
            self._running[key_id] -= 1

    def spent(self, key_id: str, num_tokens: int) -> None:
        """May go below nothing: what a request takes is known at its end."""
        self._usage(key_id).tokens.take(num_tokens)

    def _usage(self, key_id: str) -> "_Usage":
        limits = self._limits_of(key_id)
        usage = self._usages.get(key_id)
        if usage is None or usage.limits != limits:
            usage = self._usages[key_id] = _Usage(limits, self._clock)
        return usage


class _Usage:
    """What one key has taken."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.requests = _Bucket(limits.rps, max(1.0, limits.rps or 0.0), clock)
        per_minute = limits.tokens_per_minute
        self.tokens = _Bucket(per_minute and per_minute / 60, per_minute or 0.0, clock)

    def begin(self, num_running: int) -> None:
        """Takes a request. Raises QUOTA_EXCEEDED with the time after which it is of use to try again."""
        limits = self.limits
        if limits.concurrent is not None and num_running >= limits.concurrent:
            most = f"{limits.concurrent} requests at once"
            raise _exceeded("concurrent", most, CONCURRENT_RETRY_SECONDS)
        if wait := self.requests.wait_for(1.0):
            raise _exceeded("requests", f"{limits.rps:g} requests per second", wait)
        if wait := self.tokens.wait_for(1.0):
            raise _exceeded("tokens", f"{limits.tokens_per_minute:g} tokens per minute", wait)
        self.requests.take(1.0)


@dataclass(slots=True)
class _Bucket:
    """Fills at `rate` per second up to `size`. Without a rate there is always enough."""

    rate: float | None
    size: float
    clock: Callable[[], float]
    content: float = 0.0
    at: float = 0.0

    def __post_init__(self) -> None:
        self.content, self.at = self.size, self.clock()

    def wait_for(self, amount: float) -> float:
        """Seconds until so much is in it; 0 when it is."""
        if self.rate is None:
            return 0.0
        self._fill()
        return max(0.0, (min(amount, self.size) - self.content) / self.rate)

    def take(self, amount: float) -> None:
        self._fill()
        self.content -= amount

    def _fill(self) -> None:
        now = self.clock()
        self.content = min(self.size, self.content + (now - self.at) * (self.rate or 0.0))
        self.at = now


def _exceeded(subject: str, description: str, retry_after: float) -> ApiError:
    message = f"the quota of this API key is used up: {description}"
    quota = Quota(subject, description)
    return ApiError.of(Reason.QUOTA_EXCEEDED, message, retry_after=retry_after, quota=quota)
