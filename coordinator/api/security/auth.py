"""Who calls: API keys checked, failures slowed down. Used by all fronts; lives on one event loop.

The identity of a call travels in a context variable, from the interceptor that has checked it to the method.
"""

import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from coordinator.api.security.api_keys import ApiKeys
from coordinator.api.security.backoff import Backoff
from coordinator.api.shared.errors import ApiError, Quota, Reason

MAX_HEADER_CHARS = 1024
_BEARER = re.compile(r"(?i:bearer) +([\x21-\x7e]{1,256})")
_MISSING = "an API key is required: send `authorization: Bearer KEY`"
_INVALID = "the API key is not valid"


@dataclass(frozen=True, slots=True)
class Identity:
    """`key_id` is the name of a key, never the key."""

    key_id: str
    is_admin: bool = False


ANY_CALLER = Identity("", is_admin=True)

current_identity: ContextVar[Identity | None] = ContextVar("current_identity", default=None)


class Authenticator(Protocol):
    """Says who a caller is."""

    @property
    def is_open(self) -> bool:
        """Whether any caller may do everything."""

    def recognise(self, authorization: str | None) -> Identity | ApiError:
        """Whose header that is. Changes nothing; `admit` has the last word."""

    def admit(self, who: Identity | ApiError, peer: str) -> Identity:
        """Raises MISSING_API_KEY, INVALID_API_KEY, QUOTA_EXCEEDED (after too many wrong keys)."""

    def check(self, authorization: str | None, peer: str) -> Identity:
        """Both at once. `peer` is an address, with or without a port."""


class NoAuthenticator:
    """Any caller may do everything."""

    is_open = True

    def recognise(self, authorization: str | None) -> Identity | ApiError:
        return ANY_CALLER

    def admit(self, who: Identity | ApiError, peer: str) -> Identity:
        return ANY_CALLER

    def check(self, authorization: str | None, peer: str) -> Identity:
        return ANY_CALLER


class KeyAuthenticator:
    """Callers with keys."""

    is_open = False

    def __init__(self, keys: ApiKeys, backoff: Backoff | None = None) -> None:
        self._keys = keys
        self._backoff = Backoff() if backoff is None else backoff

    def recognise(self, authorization: str | None) -> Identity | ApiError:
        # Looked up even where there is nothing to look up: the time must not tell what was wrong.
        key = self._keys.find(_bearer(authorization or ""))
        if key is not None:
            return Identity(key.name, key.is_admin)
        if not authorization:
            return ApiError.of(Reason.MISSING_API_KEY, _MISSING)
        return ApiError.of(Reason.INVALID_API_KEY, _INVALID)

    def admit(self, who: Identity | ApiError, peer: str) -> Identity:
        if isinstance(who, ApiError) and who.reason is Reason.MISSING_API_KEY:
            raise who
        wait = self._backoff.wait(peer, who.key_id if isinstance(who, Identity) else None)
        if wait > 0:
            raise _too_many(wait)
        if isinstance(who, ApiError):
            self._backoff.failed(peer)
            raise who
        self._backoff.succeeded(peer, who.key_id)
        return who

    def check(self, authorization: str | None, peer: str) -> Identity:
        return self.admit(self.recognise(authorization), peer)


def require_admin(identity: Identity) -> None:
    """Raises NOT_ALLOWED."""
    if not identity.is_admin:
        raise ApiError.of(Reason.NOT_ALLOWED, "this API key may not use the control service")


def single(values: Sequence[str]) -> str | None:
    """The one value of a header that may have come several times; then it becomes one that is not valid."""
    return ",".join(values) if values else None


def _bearer(authorization: str) -> str:
    """The key of a header; empty, which no key is, when there is none."""
    match = None if len(authorization) > MAX_HEADER_CHARS else _BEARER.fullmatch(authorization)
    return match[1] if match else ""


def _too_many(wait: float) -> ApiError:
    message = "too many wrong API keys came from this address; try again later"
    quota = Quota("authentication", "wrong API keys of one address")
    return ApiError.of(Reason.QUOTA_EXCEEDED, message, retry_after=wait, quota=quota)
