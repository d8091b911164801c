"""The folder of a machine in which mirrors keep what they have fetched: who uses what, how much, what goes.

CACHE/lock                 held while room is made
CACHE/KEY/lock             held, shared, by each process that has the mirror open; its time is the last use
CACHE/KEY/files/...        the files, sparse
CACHE/KEY/sums/...         of each file 32 bytes a block
"""

import fcntl
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moe_model.errors import CheckpointError
from moe_model.files.mirrored import SUMS_FOLDER
from moe_model.files.whole_file import reason
from moe_model.remote.block_file import BlockFile
from moe_model.remote.listing import BLOCK_BYTES, ON_DEMAND_SUFFIX

logger = logging.getLogger(__name__)

# Of what the disk has left and the cache has taken, without a limit of the user's.
_SHARE = 0.8
# Room is made for more than is wanted, so that it need not be looked for with each block.
_SLACK = 0.1
# A process may take so much of the room that it has seen before it looks again: others take some, too.
_SHARE_AT_ONCE, _MOST_AT_ONCE = 0.125, 64 << 20
_LOCK_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_KEY = re.compile(r"[a-z0-9][a-z0-9-]{7,79}")
_FILES = "files"
_EVICTED = ".evicted-"


@dataclass(frozen=True, slots=True)
class Held:
    """The folder of a mirror that this process uses, until it is released."""

    path: Path
    descriptor: int

    @property
    def files(self) -> Path:
        return self.path / _FILES

    def block_file(self, name: str, size: int) -> BlockFile:
        return BlockFile(self.files / name, self.path / SUMS_FOLDER / name, size)

    def release(self) -> None:
        os.close(self.descriptor)


class CacheFolder:
    """`max_bytes` None: a share of the disk, which is what remains of it at the time. Any thread."""

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        # Links resolved: the path of a mirror, resolved, must be the one that is announced.
        self.path, self._max_bytes = path.resolve(), max_bytes
        self._lock, self._allowance = threading.Lock(), 0
        self._has_warned = False

    def hold(self, key: str) -> Held:
        """The folder for a key, made where there is none; it is not evicted until it is released. Raises
        CheckpointError."""
        assert _KEY.fullmatch(key), key
        folder = self.path / key
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another process may be evicting it: after that it is made anew.
            pause, until = threading.Event(), time.monotonic() + _LOCK_SECONDS
            while (descriptor := _try_hold(folder)) is None:
                if time.monotonic() > until:
                    raise CheckpointError(f"{folder}: another process has it locked: end that one")
                pause.wait(_LOOK_SECONDS)
        except OSError as error:
            raise self.unusable(error) from None
        return Held(folder, descriptor)

    def unusable(self, error: OSError) -> CheckpointError:
        """What has failed of it, and what to do."""
        what = f"cache {self.path}: {reason(error)}"
        return CheckpointError(
            f"{what}: EXPERTMESH_CACHE names a folder on a disk that has room and can be written to"
        )

    def no_room(self, name: str) -> CheckpointError:
        """For a file that it must have, and what to do."""
        return CheckpointError(
            f"cache {self.path}: has no room for {name}: EXPERTMESH_CACHE_BYTES says how much it may have, "
            "EXPERTMESH_CACHE where it is"
        )

    def make_room(self, num_bytes: int) -> bool:
        """Whether so many more may be kept; other things go for them."""
        with self._lock:
            if num_bytes <= self._allowance:
                self._allowance -= num_bytes
                return True
            try:
                with _locked(self.path / "lock") as got:
                    room = self._room(num_bytes) if got else 0
            except OSError as error:
                self.warn(reason(error))
                return False
            if room < num_bytes:
                self.warn("is full of what is in use")
                return False
            self._allowance = max(0, min(int(room * _SHARE_AT_ONCE), _MOST_AT_ONCE) - num_bytes)
            return True

    def warn(self, why: str) -> None:
        """Once: what is fetched is not kept, and fetched again when it is read again."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("cache %s: %s: what is fetched is not kept", self.path, why)

    def max_bytes(self, used: int) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        return int((used + shutil.disk_usage(self.path).free) * _SHARE)

    def used_bytes(self) -> int:
        """What all of it takes of the disk. Raises OSError."""
        return _disk_bytes(self.path)

    def _room(self, num_bytes: int) -> int:
        """How much there is, after what could go for `num_bytes` has gone. Raises OSError."""
        used = self.used_bytes()
        limit = self.max_bytes(used)
        if limit - used >= num_bytes or num_bytes > limit:
            return limit - used
        wanted = used + num_bytes - limit + int(limit * _SLACK)
        freed = 0
        for free in (self._evict_unused, self._drop_blocks):
            if freed < wanted:
                freed += free(wanted - freed)
        return limit - self.used_bytes()

    def _evict_unused(self, wanted: int) -> int:
        """Whole mirrors that no process has open, the one first that was opened longest ago."""
        freed = 0
        for leftover in self.path.glob(f"{_EVICTED}*"):
            freed += _remove(leftover)
        for folder in sorted(self._folders(), key=lambda each: _time_of(each / "lock")):
            if freed >= wanted:
                break
            freed += _evict(folder)
        return freed

    def _drop_blocks(self, wanted: int) -> int:
        """Of mirrors in use: what they have read is in memory, so the files used longest ago go first."""
        freed = 0
        sums = [
            path
            for folder in self._folders()
            for path in (folder / SUMS_FOLDER).rglob(f"*{ON_DEMAND_SUFFIX}")
        ]
        for path in sorted(sums, key=_time_of):
            if freed >= wanted:
                break
            folder = self.path / path.relative_to(self.path).parts[0]
            data = folder / "files" / path.relative_to(folder / SUMS_FOLDER)
            with suppress(FileNotFoundError), BlockFile(data, path, data.stat().st_size).opened() as blocks:
                gone = blocks.present()[: -(-(wanted - freed) // BLOCK_BYTES)]
                blocks.drop(gone)
                freed += len(gone) * BLOCK_BYTES
        return freed

    def _folders(self) -> Iterator[Path]:
        for path in self.path.iterdir():
            if _KEY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path


def _try_hold(folder: Path) -> int | None:
    """None: it is being evicted. Raises OSError, CheckpointError."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
        raise CheckpointError(f"{folder}: belongs to another user: EXPERTMESH_CACHE names another folder")
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(descriptor)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _evict(folder: Path) -> int:
    """How many bytes that has freed; 0 where a process uses it."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside = folder.with_name(f"{_EVICTED}{secrets.token_hex(8)}")
        folder.rename(aside)
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return _remove(aside)


def _remove(folder: Path) -> int:
    size = _disk_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size


def _disk_bytes(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            # Another process may just have removed it.
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
    return total


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether it was got in time. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    pause, until = threading.Event(), time.monotonic() + _LOCK_SECONDS
    got = False
    try:
        while not got and time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got = True
            except BlockingIOError:
                pause.wait(_LOOK_SECONDS)
        yield got
    finally:
        os.close(descriptor)
