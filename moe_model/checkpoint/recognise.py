"""What a path is that is not what was expected, and what to do with it: for the one line of an error.

Looks at names and at the first bytes of files, follows links, trusts nothing. Needs no torch.
"""

import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from moe_model.errors import CheckpointError
from moe_model.families import HUGGING_FACE

MANIFEST = "manifest.json"
SHARED_PART = "shared_components.pt"
# What ModularForge writes as one file. The calibrated model is the later of the two.
ASSEMBLED = tuple(
    f"{name}{suffix}"
    for name in ("calibrated_model", "assembled_model")
    for suffix in (".pt", ".safetensors")
)
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
POINTER = "is a pointer of git-lfs and not the file itself: run `git lfs pull` in its repository"
HUGGING_FACE_CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 50
ONLY_OURS = f"this version serves models of ModularForge, and of Hugging Face: {', '.join(HUGGING_FACE)}"

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z")
_EXPERT_PART = re.compile(r"expert_\d+\.pt")
_POINTER_START = b"version https://git-lfs.github.com/spec/"
# What the hub's cache calls the folder of a model, and one in it.
_CACHED, SNAPSHOTS = "models--", "snapshots"
# A folder may hold anything; so many names are enough to know it by.
_MAX_NAMES = 4096
_MAX_SHOWN = 4


def what_is(path: Path) -> str:
    """What follows the path in an error: `is ...: what to do`. Never raises."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(path, _names(path))
        return _file(path) if stat.S_ISREG(mode) else "is neither a file nor a folder"
    except OSError as error:
        return _missing(path) if isinstance(error, FileNotFoundError) else str(error.strerror or error)


def is_present(path: Path) -> bool:
    """Whether there is such a name, whatever it is of; a reader says what is wrong with it."""
    return os.path.lexists(path)


def cached_name(folder: Path) -> str | None:
    """ORG/NAME of the model whose folder in the hub's cache this is; None of another folder."""
    if not folder.name.startswith(_CACHED):
        return None
    return folder.name.removeprefix(_CACHED).replace("--", "/", 1)


def is_pointer(path: Path) -> bool:
    """Whether git-lfs has left its note here instead of the file."""
    return _head(path).startswith(_POINTER_START)


def refuse_pointer(path: Path) -> None:
    """Raises CheckpointError for what git-lfs has left instead of the file."""
    if is_pointer(path):
        raise CheckpointError(f"{path}: {POINTER}")


def hugging_face(folder: Path) -> str | None:
    """What the Hugging Face model in a folder is; None where there is none."""
    if is_pointer(folder / HUGGING_FACE_CONFIG):
        return f"has a {HUGGING_FACE_CONFIG} that {POINTER}"
    config = _config(folder / HUGGING_FACE_CONFIG)
    if config is None or not ("model_type" in config or "architectures" in config):
        return None
    kind = config.get("model_type")
    of_type = f" of model_type {kind[:40]}" if isinstance(kind, str) and kind else ""
    is_known = isinstance(kind, str) and kind in HUGGING_FACE
    next_step = f"give its folder, {_shown(folder)}" if is_known else ONLY_OURS
    return f"is a Hugging Face model{of_type}; {next_step}"


def is_readable_hugging_face(folder: Path) -> bool:
    """Whether the folder has a model of a type that some family reads."""
    kind = (_config(folder / HUGGING_FACE_CONFIG) or {}).get("model_type")
    return isinstance(kind, str) and kind in HUGGING_FACE


def _missing(path: Path) -> str:
    return "is a link that leads nowhere" if path.is_symlink() else "no such file or folder"


def _file(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(len(_POINTER_START))
    if not head:
        return "is an empty file"
    if head.startswith(_POINTER_START):
        return POINTER
    if head.startswith(b"GGUF"):
        return f"is a GGUF file; {ONLY_OURS}, imported from its .pt or .safetensors files"
    if (path.parent / MANIFEST).exists():
        return f"is a file of a checkpoint; give its folder, {_shown(path.parent)}"
    if path.name == HUGGING_FACE_CONFIG and (found := hugging_face(path.parent)) is not None:
        return f"is a file of a folder that {found}"
    if path.suffix in _ARCHIVES:
        return "is an archive; unpack it, and give the folder"
    if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        return f"is a file; a checkpoint is a folder with a {MANIFEST} or a {HUGGING_FACE_CONFIG} in it"
    what = "a safetensors file" if path.suffix == ".safetensors" else "a PyTorch file"
    return hugging_face(path.parent) or f"is {what}; if ModularForge wrote it: {_import_of(path)}"


def _folder(path: Path, names: Sequence[str]) -> str:
    if not names:
        return "is an empty folder"
    if MANIFEST in names:
        return "is a checkpoint of ours"
    if (one := next((name for name in ASSEMBLED if name in names), None)) is not None:
        how = f", but {one} {POINTER}" if is_pointer(path / one) else f": {_import_of(path)}"
        return f"is a ModularForge output{how}"
    if SHARED_PART in names:
        return f"is a ModularForge output of parts: {_import_of(path)} --router uniform"
    if any(_EXPERT_PART.fullmatch(name) for name in names):
        return f"is a ModularForge output without its {SHARED_PART}"
    return _foreign(path, names) or _parent(path, names) or _unknown(path, names)


def _foreign(path: Path, names: Sequence[str]) -> str | None:
    if (found := hugging_face(path)) is not None:
        return found
    if (gguf := next((name for name in names if name.lower().endswith(".gguf")), None)) is not None:
        return f"holds a GGUF file ({gguf[:80]}); {ONLY_OURS}"
    if "adapter_config.json" in names:
        return f"is an adapter of another model; {ONLY_OURS}"
    if "params.json" in names or "model_index.json" in names:
        return f"is a model of another kind; {ONLY_OURS}"
    return None


def _parent(path: Path, names: Sequence[str]) -> str | None:
    """A folder of folders: what is one level below."""
    if SNAPSHOTS in names and (model := cached_name(path)) is not None:
        return f"is a model in the Hugging Face cache: give its name, {model[:80]}"
    ours = [name for name in names if _is_checkpoint(path / name)]
    if len(ours) == 1:
        return f"is no checkpoint but holds one: {_shown(path / ours[0])}"
    if ours:
        return f"holds {len(ours)} checkpoints; give one of them: {_listed(ours)}"
    outputs = [n for n in names if any((path / n / one).is_file() for one in (*ASSEMBLED, SHARED_PART))]
    if outputs:
        return f"holds a ModularForge output: {_import_of(path / outputs[0])}"
    return None


def _is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file() or is_readable_hugging_face(path)


def _unknown(path: Path, names: Sequence[str]) -> str:
    is_broken = HUGGING_FACE_CONFIG in names and _config(path / HUGGING_FACE_CONFIG) is None
    broken = f"; its {HUGGING_FACE_CONFIG} is no JSON object" if is_broken else ""
    loose = [name for name in names if name.endswith((*TORCH_SUFFIXES, ".safetensors"))]
    if len(loose) == 1:
        return f"is no checkpoint; if ModularForge wrote {loose[0][:80]}, import that file{broken}"
    return f"is no checkpoint and no ModularForge output, it holds {_listed(names)}{broken}"


def _import_of(path: Path) -> str:
    return f"expertmesh import {_shown(path)} my-model"


def _shown(path: Path) -> str:
    return shlex.quote(str(path))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_MAX_SHOWN])
    return shown if len(names) <= _MAX_SHOWN else f"{shown} and {len(names) - _MAX_SHOWN} more"


def _names(folder: Path) -> list[str]:
    """In order, without hidden ones."""
    with os.scandir(folder) as entries:
        visible: Iterator[str] = (entry.name for entry in entries if not entry.name.startswith("."))
        return sorted(islice(visible, _MAX_NAMES))


def _config(path: Path) -> dict[str, object] | None:
    data = _head(path, MAX_CONFIG_BYTES)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _head(path: Path, size: int = len(_POINTER_START)) -> bytes:
    """The first bytes of a regular file; none of what is no such file or cannot be read."""
    try:
        # O_NONBLOCK: a pipe in the file's place is not waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(size) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""
