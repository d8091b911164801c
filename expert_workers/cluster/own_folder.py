"""OwnFolder: all that one process of ours has on disk while it runs, in a folder that is closed to others.

Ray makes its own folders writable for all; below this one that opens them to no other user. The owner holds a
lock as long as it lives, so that a later process can tell what was left behind by one that was killed: a pid,
which another machine or container that shares the folder may use as well, cannot.
"""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from moe_model.errors import ClusterError

PREFIX = "em-"
_LOCK, _NEW_LOCK = "owner", "owner.new"
_RAY = "r"
# One that has no lock yet is being made.
_MAKING_SECONDS = 60.0
# A socket's path may have 107 bytes, of which Ray takes 64 below its folder.
_MAX_PATH = 107 - 64
_NUM_BELOW = len(f"/{PREFIX}12345678/{_RAY}")

_log = logging.getLogger(__name__)


class OwnFolder:
    """Has `ray`, which Ray uses, and room for more."""

    def __init__(self) -> None:
        """Removes first what others left. Raises ClusterError where no folder can be made."""
        try:
            parent = _parent()
            for path in left_behind(parent):
                _log.warning("removing %s, which a process that was killed left behind", path)
                _remove(path)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = _locked(self.path)
            self.ray = ray_folder(self.path)
            self.ray.mkdir(0o700)
        except OSError as error:
            longest = _MAX_PATH - _NUM_BELOW
            raise ClusterError(
                f"no temporary folder ({error.strerror or error}); set TMPDIR to a folder that can be "
                f"written, of a path of at most {longest} bytes"
            ) from None

    def remove(self) -> None:
        """Idempotent."""
        _remove(self.path)
        with suppress(OSError):
            os.close(self._lock)


def ray_folder(folder: Path) -> Path:
    """What Ray uses of an OwnFolder."""
    return folder / _RAY


def _remove(folder: Path) -> None:
    """The lock last: what could not be removed whole, as a process still writes there, is known later."""
    shutil.rmtree(folder / _RAY, ignore_errors=True)
    if not (folder / _RAY).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> int:
    """The lock is there only once it is held. The kernel lets go of it when the process ends. A folder that
    cannot have one is removed."""
    new = folder / _NEW_LOCK
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder / _LOCK)
    except OSError:
        os.close(lock)
        _remove(folder)
        raise
    return lock


def left_behind(parent: Path) -> Iterator[Path]:
    """Folders of this user's processes that are no more."""
    with suppress(OSError):
        for path in sorted(parent.glob(f"{PREFIX}*")):
            if _is_ours(path) and _is_abandoned(path):
                yield path


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    mode = stat.S_IMODE(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and mode == 0o700


def _is_abandoned(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _is_old_and_unused(path)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _is_old_and_unused(path: Path) -> bool:
    try:
        return {*os.listdir(path)} <= {_NEW_LOCK} and time.time() - path.stat().st_mtime > _MAKING_SECONDS
    except OSError:
        return False


def _parent() -> Path:
    """Where the system wants temporary files; where such a path is too long for a socket, the usual place."""
    parent = tempfile.gettempdir()
    length = len(os.fsencode(os.path.realpath(parent))) + _NUM_BELOW
    return Path(parent if length <= _MAX_PATH else "/tmp")  # noqa: S108
