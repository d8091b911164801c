"""API keys: a file of their hashes, several of them, changed without a restart. Plain keys are never stored.

One key per line, `NAME:SHA256[:admin][:rps=N,concurrent=N,tokens_per_minute=N]`; `#` begins a comment. A
name may stand on two lines while its key is being replaced.
"""

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.api.shared.file_watch import FileWatch
from coordinator.config.key_limits import NO_LIMITS, Limits, parse_limits
from moe_model.errors import ConfigError
from moe_model.files.private_files import check_private, read_bounded

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Of a key that a caller sends: what fits a header without quoting, long enough not to be guessed.
SECRET = re.compile(r"[\x21-\x7e]{16,256}")
MAX_KEYS = 1024
WHAT = "API key file"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a key file's line says. `name` is the key's id wherever one is shown."""

    name: str
    digest: bytes
    is_admin: bool = False
    limits: Limits = NO_LIMITS

    def line(self) -> str:
        parts = (self.name, self.digest.hex(), "admin" if self.is_admin else "", str(self.limits))
        return ":".join(part for part in parts if part)


def new_secret() -> str:
    """256 random bits."""
    return f"em-{secrets.token_urlsafe(32)}"


def key_of(name: str, secret: str, *, is_admin: bool = False, limits: Limits | None = None) -> ApiKey:
    """Raises ConfigError for a name that is none, and for a secret that is too short or long."""
    if not NAME.fullmatch(name):
        raise ConfigError("API key: a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    if not SECRET.fullmatch(secret):
        raise ConfigError(f"API key {name}: a key is 16 to 256 visible ASCII characters")
    return ApiKey(name, _digest(secret), is_admin, limits or NO_LIMITS)


class ApiKeys:
    """The keys that are valid now. For any thread.

    A key file is looked at again when keys are asked for, at most once a second. One that became broken
    leaves the keys as they were.
    """

    def __init__(
        self, fixed: Sequence[ApiKey], path: Path | None = None, watch: FileWatch | None = None
    ) -> None:
        self._fixed = tuple(fixed)
        self._path = path
        self._watch = watch or (None if path is None else FileWatch((path,)))
        self._lock = threading.Lock()
        self._keys = self._read()

    @classmethod
    def open(cls, path: Path | None, secret: str | None = None) -> "ApiKeys":
        """The keys of a file, and one more that is given itself. Raises ConfigError."""
        return cls(() if secret is None else (key_of("default", secret, is_admin=True),), path)

    @classmethod
    def from_secret(cls, secret: str) -> "ApiKeys":
        """One key, which may do everything. Raises ConfigError."""
        return cls.open(None, secret)

    def find(self, secret: str) -> ApiKey | None:
        """Takes as long for a key that is valid as for one that is not, wherever it stands."""
        digest, found = _digest(secret), None
        for key in self.current():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def limits_of(self, name: str) -> Limits | None:
        """None when there is no such key (any more)."""
        return next((key.limits for key in self.current() if key.name == name), None)

    def current(self) -> tuple[ApiKey, ...]:
        if self._watch is not None and self._watch.changed():
            self._reload()
        return self._keys

    def _reload(self) -> None:
        with self._lock:
            try:
                self._keys = self._read()
            except ConfigError as error:
                logger.error("%s; the keys stay as they were", error)
            else:
                logger.info("API key file read again: %d keys", len(self._keys))

    def _read(self) -> tuple[ApiKey, ...]:
        keys = self._fixed if self._path is None else (*self._fixed, *read_keys(self._path))
        _check_together(keys)
        return keys


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Raises ConfigError, naming the line; never its content."""
    check_private(path, WHAT)
    try:
        lines = read_bounded(path, WHAT).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{WHAT} {path}: is not UTF-8 text") from None
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                keys.append(parse_line(text))
            except ConfigError as error:
                raise ConfigError(f"{WHAT} {path}, line {number}: {error}") from None
    if not keys:
        raise ConfigError(f"{WHAT} {path}: holds no key; make one with `expertmesh keys new NAME`")
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"{WHAT} {path}: {len(keys)} keys are more than {MAX_KEYS}")
    return tuple(keys)


def parse_line(text: str) -> ApiKey:
    """Raises ConfigError that shows nothing of the line, for it may hold a plain key."""
    name, *rest = text.split(":")
    if not NAME.fullmatch(name) or not rest or not _DIGEST.fullmatch(rest[0]):
        raise ConfigError("expected NAME:SHA256, with 64 hexadecimal digits in lower case")
    is_admin = rest[1:2] == ["admin"]
    given = rest[2:] if is_admin else rest[1:]
    if len(given) > 1:
        raise ConfigError("expected NAME:SHA256[:admin][:LIMITS]")
    return ApiKey(name, bytes.fromhex(rest[0]), is_admin, parse_limits(given[0]) if given else NO_LIMITS)


def _check_together(keys: Sequence[ApiKey]) -> None:
    by_name: dict[str, ApiKey] = {}
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigError("API keys: two lines hold the same key")
    for key in keys:
        first = by_name.setdefault(key.name, key)
        if (first.is_admin, first.limits) != (key.is_admin, key.limits):
            raise ConfigError(f"API keys: the lines of {key.name} differ in what it may do")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
