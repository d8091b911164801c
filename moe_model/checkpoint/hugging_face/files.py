"""The files of a Hugging Face folder, what is known of their sums, and what tells one folder from another."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from moe_model.checkpoint.hugging_face.generation import GENERATION_CONFIG
from moe_model.checkpoint.hugging_face.shards import INDEX, MAX_INDEX_BYTES, ShardedTable
from moe_model.checkpoint.hugging_face.texts import MORE_TEMPLATES, OLD_TEMPLATE, SPECIAL_TOKENS_MAP
from moe_model.checkpoint.manifest import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, FileEntry
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, is_present
from moe_model.errors import CheckpointError
from moe_model.files.piece_file import PieceFile
from moe_model.files.whole_file import read_file

# Those that hold no tensors, but for further templates.
SMALL_FILES = (
    *(HUGGING_FACE_CONFIG, GENERATION_CONFIG, INDEX, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP),
    *(CHAT_TEMPLATE, OLD_TEMPLATE),
)
# Of the larger of two kinds of blobs in a cache the name is the SHA-256, of the others that of git.
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOBS = "blobs"
# Where the library notes what it has put into a folder that is no cache.
_DOWNLOADS = Path(".cache/huggingface/download")
_MAX_NOTE_BYTES = 4096
_NUM_SAMPLES, _SAMPLE_BYTES = 16, 4096


def file_entries(folder: Path, table: ShardedTable) -> dict[str, FileEntry]:
    """Of each file that is read. The SHA-256 of one with tensors is what it should be, by where it was
    downloaded to, or None. Raises CheckpointError."""
    entries = {name: _entry_of_text(folder / name) for name in _texts(folder)}
    for name, shard in table.files.items():
        path = folder / name
        entries[name] = FileEntry(shard.file.size, _blob_sum(path) or _noted_sum(folder, name))
    return entries


def fingerprint(entries: Mapping[str, FileEntry], of_tensors: Mapping[str, str]) -> str:
    """Differs where any file does, the same on every machine: by the sums of the small files, and the digests
    of those with tensors."""
    found = [[name, entry.size, of_tensors.get(name, entry.sha256)] for name, entry in entries.items()]
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def digests(folder: Path, table: ShardedTable) -> dict[str, str]:
    """Of each file with tensors what stands for its content: what a mirror says of it, or the name of the
    blob that a cache has it as; else a sum of its header and of samples of its bytes, which a change of a few
    tensors may escape. Raises CheckpointError."""
    return {
        name: shard.file.digest or _blob_sum(folder / name) or _sampled(shard.file, shard.header_sha256)
        for name, shard in table.files.items()
    }


def check_sum(file: PieceFile, expected: str) -> None:
    """Reads all of it. Raises CheckpointError."""
    found = hashlib.sha256()
    for chunk in file.chunks():
        found.update(chunk)
    if found.hexdigest() != expected:
        file.forget()
        raise CheckpointError(
            f"{file.path}: SHA-256 is not that of the file which was downloaded: download it again"
        )


def _texts(folder: Path) -> Iterator[str]:
    yield from (name for name in SMALL_FILES if is_present(folder / name))
    yield from sorted(f"{MORE_TEMPLATES}/{path.name}" for path in (folder / MORE_TEMPLATES).glob("*.jinja"))


def _entry_of_text(path: Path) -> FileEntry:
    data = read_file(path, max_size=MAX_INDEX_BYTES, follow_links=True)
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


def _blob_sum(path: Path) -> str | None:
    """Of a file of a snapshot: a link to a blob whose name is its SHA-256."""
    target = path.resolve()
    is_blob = path.is_symlink() and target.parent.name == _BLOBS and _SHA256.fullmatch(target.name)
    return target.name if is_blob else None


def _noted_sum(folder: Path, name: str) -> str | None:
    """The second line of what the library notes of a download, for a large file its SHA-256."""
    note = folder / _DOWNLOADS / f"{name}.metadata"
    if not note.is_file():
        return None
    lines = read_file(note, max_size=_MAX_NOTE_BYTES, follow_links=True).decode(errors="replace").split("\n")
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def _sampled(file: PieceFile, header_sha256: str) -> str:
    found = hashlib.sha256(header_sha256.encode())
    size = min(_SAMPLE_BYTES, file.size)
    for number in range(_NUM_SAMPLES):
        found.update(file.read(number * (file.size - size) // (_NUM_SAMPLES - 1), size))
    return found.hexdigest()
