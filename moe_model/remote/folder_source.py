"""A checkpoint of this machine as the source of another one's mirror: its listing and its bytes."""

from collections.abc import Sequence
from pathlib import Path

from moe_model.checkpoint.manifest import MANIFEST
from moe_model.checkpoint.reader import Checkpoint
from moe_model.checkpoint.recognise import is_present
from moe_model.errors import CheckpointError
from moe_model.files.piece_file import PieceFile
from moe_model.files.whole_file import reason
from moe_model.halt import Halt
from moe_model.remote.listing import BLOCK_SUMS, Listing, RemoteFile
from moe_model.remote.source import Range


def listing_of(checkpoint: Checkpoint) -> Listing:
    """All files that it is read from. A mirror by this listing has the same fingerprint, and no bytes of
    tensors are needed for it. Raises CheckpointError."""
    path = checkpoint.path
    files = {
        name: RemoteFile(
            entry.size, entry.sha256 or _written(path / name), checkpoint.digests.get(name, entry.sha256)
        )
        for name, entry in checkpoint.files.items()
    }
    for name in (MANIFEST, BLOCK_SUMS):
        if is_present(path / name):
            files[name] = RemoteFile(PieceFile(path / name).size, _written(path / name))
    return Listing(files)


def _written(path: Path) -> str:
    """When, which differs once it was replaced. A digest by samples may not, and what is kept elsewhere of
    the old file must not be taken for the new one's. Raises CheckpointError."""
    try:
        return str(path.stat().st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None


class FolderSource:
    """A RangeSource over a folder; of one that is a mirror itself, what is missing is fetched for it."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder
        self._opened: dict[str, PieceFile] = {}

    def read(self, name: str, ranges: Sequence[Range], halt: Halt) -> Sequence[bytes]:
        """Raises CheckpointError, also for a file that has changed since it was first read; HaltedError."""
        halt.check()
        file = self._opened.get(name)
        if file is None:
            # Threads may open it twice: both are the same file, or the next read of one of them fails.
            file = self._opened.setdefault(name, PieceFile(self._folder / name))
        return [bytes(file.read(begin, end - begin)) for begin, end in ranges]
