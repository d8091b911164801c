"""Files with secrets: who may read them. Knows no format."""

import os
import stat
from pathlib import Path

from moe_model.errors import ConfigError

MAX_FILE_BYTES = 1 << 20


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
            # Reading a pipe would wait for the process that writes to it.
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
