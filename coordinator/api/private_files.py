"""Files with secrets: who may read them, and whether they have changed. Knows no format."""

import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from moe_model.errors import ConfigError

CHECK_INTERVAL = 1.0
MAX_FILE_BYTES = 1 << 20

Signature = tuple[tuple[int, int, int, int] | None, ...]


def check_private(path: Path, what: str) -> None:
    """Raises ConfigError where others than this user and root can read or change the file.

    A group may read what belongs to root: that is how secrets are mounted for a process that is not root.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, what, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{what} {path}: is not a file")
    allowed = allowed_mode(found.st_uid, os.geteuid())
    if allowed is None:
        raise ConfigError(f"{what} {path}: belongs to another user; chown it to the one that runs the server")
    if stat.S_IMODE(found.st_mode) & 0o077 & ~allowed:
        raise ConfigError(f"{what} {path}: others can read or change it; run chmod {allowed:o} on it")


def allowed_mode(owner: int, user: int) -> int | None:
    """The permissions that a user's file may have at most; None when it must not be that owner's."""
    if owner == user:
        return 0o600
    return 0o640 if owner == 0 else None


def read_bounded(path: Path, what: str) -> bytes:
    """The content of a small file. Raises ConfigError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # Reading a pipe would wait for whoever writes to it.
            raise ConfigError(f"{what} {path}: is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise unreadable(path, what, error) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{what} {path}: is larger than {MAX_FILE_BYTES} bytes")
    return data


def unreadable(path: Path, what: str, error: OSError) -> ConfigError:
    return ConfigError(f"{what} {path}: {error.strerror or 'cannot be read'}")


class FileWatch:
    """Tells, at most once a second, whether files are other ones than at the last time. For any thread."""

    def __init__(
        self,
        paths: Sequence[Path],
        clock: Callable[[], float] = time.monotonic,
        interval: float = CHECK_INTERVAL,
    ) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._interval = interval
        self._lock = threading.Lock()
        self._signature = self._look()
        self._looked_at = clock()

    def changed(self) -> bool:
        """True once per change; what is read after it is at least as new as the change."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at < self._interval:
                return False
            self._looked_at = now
            signature = self._look()
            if signature == self._signature:
                return False
            self._signature = signature
            return True

    def _look(self) -> Signature:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    """A file's times, identity and size, of what a link points to; None when there is none.

    Its second time moves with its mode and owner: a file that was open to others is read once it is not.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
