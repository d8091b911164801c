"""Folders whose files are not all here: their bytes are read through what has them, and not from the disk.

The only hook between readers of files and `moe_model/remote`: a folder is announced here while it is open.
"""

import os
from pathlib import Path
from typing import Protocol

from moe_model.errors import CheckpointError

# Beside the files of a mirror: the sums of those blocks that are here.
SUMS_FOLDER = "sums"


class MirroredFile(Protocol):
    """A file of a mirrored folder, of `size` bytes.

    `digest` differs where the content does, None: not known without reading it. Every method raises
    CheckpointError naming the file.
    """

    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> str | None: ...
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills all of `view`, of bytes, from `offset` on; it must not reach beyond the file's end."""

    def forget(self) -> None:
        """What is here of it is wrong by a sum that only its reader knows: it is fetched again."""


class MirroredFolder(Protocol):
    """`path`: where its files seem to be. `name`: of the model, as people know it. `location`: what another
    process opens it by, which may hold secrets."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def location(self) -> str: ...
    def file(self, name: str) -> MirroredFile | None:
        """None for a file that is whole on the disk, or that there is not."""


_OPEN: dict[Path, MirroredFolder] = {}


def announce(folder: MirroredFolder) -> None:
    """From now on its files are read through it."""
    _OPEN[folder.path] = folder


def withdraw(folder: MirroredFolder) -> None:
    """It is closed: nothing of it is read any more. Idempotent."""
    if _OPEN.get(folder.path) is folder:
        del _OPEN[folder.path]


def mirrored_folder(path: Path) -> MirroredFolder | None:
    """The open one at this very path."""
    return _OPEN.get(path)


def mirrored_file(path: Path) -> MirroredFile | None:
    """None of a file that is read from the disk."""
    if not _OPEN:
        return None
    for parent in path.parents:
        if (folder := _OPEN.get(parent)) is not None:
            return folder.file(path.relative_to(parent).as_posix())
    return None


def require_whole(folder: Path) -> None:
    """Raises CheckpointError for files of a mirror that is not open: what is missing would read as zeros."""
    resolved = Path(os.path.realpath(folder))
    if mirrored_folder(folder) is None and (resolved.parent / SUMS_FOLDER).is_dir():
        raise CheckpointError(
            f"{folder}: is a cache, which has parts of a checkpoint: give what it was fetched from"
        )
