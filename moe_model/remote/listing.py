"""What a remote checkpoint has: the names and sizes of its files, and what is known of their content.

Plain data, which another machine may have sent: names become paths here, so they are checked.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import PurePosixPath

from moe_model.checkpoint.recognise import MAX_FILE_BYTES
from moe_model.errors import CheckpointError

# Of a file, what is fetched, summed and kept as one. Experts of 4.5 MiB, drawn at random, take 5 % more bytes
# than they have, those of 9 MiB 2.5 %; with 1 MiB it would be 20 % and 10 %.
BLOCK_BYTES = 256 << 10
SUM_BYTES = hashlib.sha256().digest_size
ON_DEMAND_SUFFIX = ".safetensors"
# A file of another kind is fetched whole: nothing that a checkpoint needs is larger, but the sums of blocks,
# which are those of 4 TiB then.
MAX_SMALL_BYTES, _MAX_SUMS_BYTES = 64 << 20, 512 << 20
BLOCK_SUMS = "block-sums"
# A file of tensors that is smaller than any is fetched whole too: a reader says what it is instead.
_MIN_ON_DEMAND_BYTES = 1024
MAX_FILES = 1 << 20
_PART = r"\w[\w .()+-]{0,200}"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,4}}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`version`: of an object, what differs once it has been replaced (ETag, time), "" where its store says
    nothing. `digest`: of a small file its SHA-256; of one with tensors what stands for its content in a
    fingerprint. None: not known without its bytes."""

    size: int
    version: str = ""
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a checkpoint, by their names in its folder. Raises CheckpointError for names and sizes
    that no checkpoint has."""

    files: Mapping[str, RemoteFile]

    def __post_init__(self) -> None:
        if len(self.files) > MAX_FILES:
            raise CheckpointError(f"more than {MAX_FILES} files are no checkpoint")
        for name, file in self.files.items():
            if not _NAME.fullmatch(name):
                raise CheckpointError(f"{name[:200]!r} is not the name of a file of a checkpoint")
            most = _MAX_SUMS_BYTES if name == BLOCK_SUMS else MAX_SMALL_BYTES
            most = MAX_FILE_BYTES if name.endswith(ON_DEMAND_SUFFIX) else most
            if not 0 <= file.size <= most:
                raise CheckpointError(f"{name}: has {file.size} bytes, at most {most} are allowed")
        folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents}
        if both := folders & self.files.keys():
            raise CheckpointError(f"{min(both)}: is a file and a folder")

    def key(self, origin: str = "") -> str:
        """Of the folder in a cache: another one where any file of it is another, or `origin` is."""
        files = {name: astuple(file) for name, file in self.files.items()}
        return hashlib.sha256(json.dumps([origin, files], sort_keys=True).encode()).hexdigest()

    def is_on_demand(self, name: str) -> bool:
        """Whether its blocks are fetched when they are read, and not when the mirror is opened."""
        return name.endswith(ON_DEMAND_SUFFIX) and self.files[name].size >= _MIN_ON_DEMAND_BYTES


def num_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)
