"""Whether files have changed: what was read from them is read again, without a restart. Knows no format."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CHECK_INTERVAL = 1.0

Signature = tuple[tuple[int, int, int, int] | None, ...]


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
