"""`block-sums`: the SHA-256 of every block of the files with tensors of a Hugging Face folder, beside them.

One line of JSON, {"format", "version", "block_bytes", "files": {name: [size, SHA-256 of its sums]}}, then the
sums: 32 bytes a block, of the files in the order of that line.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moe_model.checkpoint.json_values import check_keys, is_int
from moe_model.checkpoint.reader import OnBytes
from moe_model.errors import CheckpointError, ConfigError
from moe_model.files import strict_json
from moe_model.files.piece_file import PieceFile
from moe_model.files.whole_file import reason
from moe_model.remote.block_file import block_sums
from moe_model.remote.listing import BLOCK_BYTES, BLOCK_SUMS, SUM_BYTES, Listing, num_blocks

_FORMAT, _VERSION = "expertmesh block sums", 1
_KEYS = {"format", "version", "block_bytes", "files"}
_MAX_LINE_BYTES = 8 << 20
_CHUNK_BYTES = 32 * BLOCK_BYTES


def write_block_sums(folder: Path, names: list[str], on_bytes: OnBytes | None = None) -> Path:
    """Reads all of the files. What was there is replaced, at once. Raises CheckpointError."""
    files = {name: PieceFile(folder / name) for name in names}
    done, total = 0, sum(file.size for file in files.values())
    entries: dict[str, tuple[int, str]] = {}
    sums: list[bytes] = []
    for name, file in files.items():
        found = b""
        for offset in range(0, file.size, _CHUNK_BYTES):
            data = file.read(offset, min(_CHUNK_BYTES, file.size - offset))
            found += block_sums(memoryview(data))
            done += len(data)
            if on_bytes is not None:
                on_bytes(done, total)
        entries[name] = file.size, hashlib.sha256(found).hexdigest()
        sums.append(found)
    head = {"format": _FORMAT, "version": _VERSION, "block_bytes": BLOCK_BYTES, "files": entries}
    dest = folder / BLOCK_SUMS
    new = dest.with_name(f".{BLOCK_SUMS}.partial-{os.getpid()}")
    try:
        with new.open("xb") as file_of_sums, ExitStack() as undo:
            undo.callback(new.unlink, missing_ok=True)
            file_of_sums.write(json.dumps(head).encode() + b"\n" + b"".join(sums))
            file_of_sums.flush()
            os.fsync(file_of_sums.fileno())
            new.replace(dest)
    except OSError as error:
        raise CheckpointError(f"{dest}: {reason(error)}") from None
    return dest


@dataclass(frozen=True, slots=True)
class KnownBlockSums:
    """KnownSums in a file that is here, read a few sums at a time. `starts`: where those of a file are."""

    path: Path
    starts: Mapping[str, int]

    @classmethod
    def open(cls, path: Path, listing: Listing) -> "KnownBlockSums":
        """Raises CheckpointError unless it is whole, and of files as the listing has them."""
        try:
            with path.open("rb") as file:
                line = file.readline(_MAX_LINE_BYTES)
                entries, starts, start = _parse(line), {}, len(line)
                for name, (size, digest) in entries.items():
                    if name in listing.files and listing.files[name].size != size:
                        raise ConfigError(
                            f"{name}: has another size now: write the sums again (expertmesh sums)"
                        )
                    sums = file.read(num_blocks(size) * SUM_BYTES)
                    if hashlib.sha256(sums).hexdigest() != digest:
                        raise ConfigError(f"{name}: its sums are damaged: write them again (expertmesh sums)")
                    starts[name] = start
                    start += len(sums)
        except (ConfigError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{path}: {reason(error)}") from None
        return cls(path, starts)

    def of(self, name: str, first: int, count: int) -> bytes | None:
        """Raises CheckpointError."""
        if name not in self.starts:
            return None
        return bytes(PieceFile(self.path).read(self.starts[name] + first * SUM_BYTES, count * SUM_BYTES))


def _parse(line: bytes) -> Mapping[str, tuple[int, str]]:
    head = strict_json.loads(line)
    if not isinstance(head, dict) or head.get("format") != _FORMAT:
        raise ConfigError("has no block sums in it")
    check_keys(head, _KEYS)
    if (head["version"], head["block_bytes"]) != (_VERSION, BLOCK_BYTES):
        raise ConfigError(f"version {head['version']!r} of {head['block_bytes']!r} bytes a block is unknown")
    entries = head["files"]
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise ConfigError("files: expected a size and a sum of each")
    return {name: (size, digest) for name, (size, digest) in entries.items()}


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    return is_int(entry[0]) and 0 <= entry[0] < 1 << 50 and isinstance(entry[1], str)
