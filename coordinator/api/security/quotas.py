"""Quotas: how much one API key may ask for. Lives on one event loop.

Rates are token buckets that hold one second of requests and one minute of tokens. Limits are a server's: its
fronts share what a key has taken. They do so without a lock, so of what two of them let in within the same
microseconds one may go uncounted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from coordinator.api.shared.errors import ApiError, Quota, Reason
from coordinator.config.key_limits import Limits
from coordinator.metrics.ledger import Ledger, Together

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
    """The limits of named keys. `limits_of` is asked anew each time: keys may change while serving. `clock`
    is the same in all fronts."""

    def __init__(
        self,
        limits_of: Callable[[str], Limits],
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
    ) -> None:
        self._limits_of = limits_of
        self._clock = clock
        self._ledger = ledger or Ledger()
        self._usages: dict[str, _Usage] = {}
        self._running: dict[str, Together] = {}

    @contextmanager
    def enter(self, key_id: str) -> Iterator[None]:
        usage, running = self._usage(key_id), self._running_of(key_id)
        try:
            usage.begin(running.add(1) - 1)
            yield
        finally:
            running.add(-1)

    def spent(self, key_id: str, num_tokens: int) -> None:
        """May go below nothing: what a request takes is known at its end."""
        self._usage(key_id).tokens.take(num_tokens)

    def _usage(self, key_id: str) -> "_Usage":
        limits = self._limits_of(key_id)
        usage = self._usages.get(key_id)
        if usage is None or usage.limits != limits:
            usage = self._usages[key_id] = _Usage(key_id, limits, self._clock, self._ledger)
        return usage

    def _running_of(self, key_id: str) -> Together:
        running = self._running.get(key_id)
        if running is None:
            running = self._running[key_id] = self._ledger.held("key_running", key_id)
        return running


class _Usage:
    """What one key has taken."""

    def __init__(self, key_id: str, limits: Limits, clock: Callable[[], float], ledger: Ledger) -> None:
        self.limits = limits
        requests, tokens = (
            ledger.kept("key_taken", key_id, what, count=3) for what in ("requests", "tokens")
        )
        self.requests = _Bucket(limits.rps, max(1.0, limits.rps or 0.0), clock, requests)
        per_minute = limits.tokens_per_minute
        self.tokens = _Bucket(per_minute and per_minute / 60, per_minute or 0.0, clock, tokens)

    def begin(self, num_running: float) -> None:
        """Takes a request, beside so many that run. Raises QUOTA_EXCEEDED with the time after which it is of
        use to try again."""
        limits = self.limits
        if limits.concurrent is not None and num_running >= limits.concurrent:
            most = f"{limits.concurrent} requests at once"
            raise _exceeded("concurrent", most, CONCURRENT_RETRY_SECONDS)
        if wait := self.requests.wait_for(1.0):
            raise _exceeded("requests", f"{limits.rps:g} requests per second", wait)
        if wait := self.tokens.wait_for(1.0):
            raise _exceeded("tokens", f"{limits.tokens_per_minute:g} tokens per minute", wait)
        self.requests.take(1.0)


# The numbers of a bucket: what is in it, when that was, and how much it can hold, 0 where it is new.
_CONTENT, _AT, _SIZE = range(3)


@dataclass(slots=True)
class _Bucket:
    """Fills at `rate` per second up to `size`. Without a rate there is always enough. Each front writes down
    what it has left in it; the newest of these is what is in it."""

    rate: float | None
    size: float
    clock: Callable[[], float]
    numbers: Together

    def wait_for(self, amount: float) -> float:
        """Seconds until so much is in it; 0 when it is."""
        if self.rate is None:
            return 0.0
        return max(0.0, (min(amount, self.size) - self._content(self.clock())) / self.rate)

    def take(self, amount: float) -> None:
        now, own = self.clock(), self.numbers.own
        own[_CONTENT] = self._content(now) - amount
        own[_AT], own[_SIZE] = now, self.size

    def _content(self, now: float) -> float:
        """Full where there is none of this size."""
        known = [each for each in self.numbers.each() if each[_SIZE] == self.size]
        if not known:
            return self.size
        newest = max(known, key=lambda each: each[_AT])
        return min(self.size, newest[_CONTENT] + (now - newest[_AT]) * (self.rate or 0.0))


def _exceeded(subject: str, description: str, retry_after: float) -> ApiError:
    message = f"the quota of this API key is used up: {description}"
    quota = Quota(subject, description)
    return ApiError.of(Reason.QUOTA_EXCEEDED, message, retry_after=retry_after, quota=quota)
