"""A new folder that appears whole or not at all. Knows nothing of what is in it."""

import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from moe_model.errors import CheckpointError
from moe_model.files.whole_file import reason

logger = logging.getLogger(__name__)


class AtomicFolder:
    """Filled beside `dest` under a hidden name, then renamed into place.

    `may_replace` raises CheckpointError if what is at `dest` must not be replaced; None: nothing may be.
    """

    def __init__(self, dest: Path, may_replace: Callable[[Path], None] | None = None) -> None:
        mark = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.path = dest.with_name(f".{dest.name}.partial-{mark}")
        self._dest = dest
        self._aside = dest.with_name(f".{dest.name}.replaced-{mark}")
        self._may_replace = may_replace

    def create(self) -> None:
        """Raises CheckpointError if the destination is taken or cannot be written to."""
        check_destination(self._dest, self._may_replace)
        try:
            self.path.mkdir()
        except OSError as error:
            raise CheckpointError(f"{self._dest}: cannot be created: {reason(error)}") from None

    def commit(self) -> None:
        """Makes everything durable and renames into place; on failure the destination is as it was."""
        check_destination(self._dest, self._may_replace)
        try:
            for folder, _, _ in os.walk(self.path, topdown=False):
                _sync_folder(Path(folder))
            self._swap()
            _sync_folder(self._dest.parent)
        except OSError as error:
            raise CheckpointError(f"{self._dest}: cannot be put into place: {reason(error)}") from None

    def discard(self) -> None:
        """Removes what has not been committed. Safe to call at any time."""
        _remove(self.path)

    def _swap(self) -> None:
        try:
            if os.path.lexists(self._dest):
                self._dest.rename(self._aside)
            self.path.rename(self._dest)
        finally:
            # An interrupt can come between any two lines, so what is on disk decides.
            if os.path.lexists(self._aside):
                if os.path.lexists(self._dest):
                    _remove(self._aside)
                else:
                    self._aside.rename(self._dest)


def check_destination(dest: Path, may_replace: Callable[[Path], None] | None) -> None:
    """Raises CheckpointError unless a folder can be put at `dest`."""
    if dest.name in ("", ".."):
        raise CheckpointError(f"{dest}: is not a name for a new folder")
    if not dest.parent.is_dir():
        raise CheckpointError(f"{dest.parent}: there is no such folder to write into")
    if not os.path.lexists(dest):
        return
    if may_replace is None:
        raise CheckpointError(f"{dest}: exists already (--force replaces a checkpoint)")
    may_replace(dest)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if not os.path.lexists(path):
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("%s: left behind, cannot be removed: %s", path, reason(error))
