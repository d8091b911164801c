"""Which clients a worker answers, and the one rule of which client may use it.

A client is a coordinator. It claims a worker under an epoch, and every call carries the epoch: a call belongs
to the client whose claim has it. So no two claims of a worker have the same epoch.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from expert_workers.wire import TAKEN_OVER
from moe_model.errors import ExpertMeshError, FencedError, ReplyError

# Seconds without a word from a client after which it is no longer there.
LEASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Claim:
    """`heard` is when the client last spoke, by time.monotonic()."""

    client: str
    epoch: int
    heard: float


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a client asks for. `by_force`: also where another client is alive; `is_linked`: whether any link
    leads to the worker at this moment."""

    client: str
    epoch: int
    by_force: bool
    is_linked: bool
    now: float


class ClaimRule(Protocol):
    """Decides which claims there are after a request."""

    def after(self, claims: Sequence[Claim], request: ClaimRequest) -> tuple[Claim, ...]:
        """All claims from now on, the requested one among them. Raises FencedError, of which the
        worker's name is not yet a part."""


@dataclass(frozen=True, slots=True)
class OneClient:
    """One client at a time, and a newer epoch fences the older.

    A client that is alive keeps the worker unless it is taken by force. A client that ends closes its links;
    one that lives speaks now and then.
    """

    lease_seconds: float = LEASE_SECONDS

    def after(self, claims: Sequence[Claim], request: ClaimRequest) -> tuple[Claim, ...]:
        for claim in claims:
            if claim.client != request.client and not request.by_force and self._is_alive(claim, request):
                raise FencedError(
                    f"is in use by {claim.client}: stop that one first, or take over from it (--take-over)"
                )
            if request.epoch < claim.epoch:
                raise FencedError(_is_over(request.epoch, claim.epoch))
        return (Claim(request.client, request.epoch, request.now),)

    def _is_alive(self, claim: Claim, request: ClaimRequest) -> bool:
        return bool(request.is_linked and claim.client and request.now - claim.heard < self.lease_seconds)


class Claims:
    """Of one worker. Any thread may call anything."""

    def __init__(self, worker: str, rule: ClaimRule | None = None) -> None:
        """`worker` is its name in errors. Before the first claim, calls of epoch 0 are answered."""
        self._worker = worker
        self._rule = rule or OneClient()
        self._lock = threading.Lock()
        self._claims: tuple[Claim, ...] = (Claim("", 0, 0.0),)

    @property
    def epochs(self) -> tuple[int, ...]:
        """Those whose calls are answered."""
        return tuple(claim.epoch for claim in self._claims)

    @property
    def newest(self) -> int:
        """The highest of all epochs that are answered."""
        return max(self.epochs)

    def claim(self, client: str, epoch: int, *, by_force: bool = False, is_linked: bool = True) -> None:
        """From now on answers the client's calls of this epoch. Raises FencedError."""
        with self._lock:
            request = ClaimRequest(client, epoch, by_force, is_linked, time.monotonic())
            try:
                self._claims = self._rule.after(self._claims, request)
            except FencedError as error:
                raise FencedError(f"{self._worker}: {error}") from None

    def heard(self, client: str) -> None:
        """The client lives. Raises FencedError where the worker is another client's."""
        with self._lock:
            if not any(claim.client in ("", client) for claim in self._claims):
                owner = self._claims[-1].client
                raise FencedError(f"{self._worker}: {owner} has taken it over")
            now = time.monotonic()
            self._claims = tuple(
                replace(claim, heard=now) if claim.client == client else claim for claim in self._claims
            )

    def check(self, epoch: int) -> None:
        """Raises FencedError for a call of an epoch that is over, ReplyError for one without a claim."""
        for claim in self._claims:
            if claim.epoch == epoch:
                return
        raise self._refusal(epoch)

    def _refusal(self, epoch: int) -> ExpertMeshError:
        newest = self.newest
        if epoch < newest:
            return FencedError(f"{self._worker}: {_is_over(epoch, newest)}")
        other = _coordinator(newest)
        return ReplyError(f"{self._worker}: epoch {epoch} has not been claimed: it answers {other}")


def _is_over(epoch: int, newest: int) -> str:
    return f"epoch {epoch} is over: {_coordinator(newest)} {TAKEN_OVER}"


def _coordinator(epoch: int) -> str:
    return f"a coordinator of epoch {epoch}"
