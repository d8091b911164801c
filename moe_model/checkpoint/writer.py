"""Writes a checkpoint: every file hashed and made durable, the manifest last, then all into place at once."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from moe_model.checkpoint.manifest import (
    CHAT_TEMPLATE,
    FORMAT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SHARED,
    TOKENIZER,
    TOKENIZER_CONFIG,
    FileEntry,
    GenerationDefaults,
    Manifest,
    dtype_name,
    expert_file,
    tensor_files,
)
from moe_model.checkpoint.safetensors_file import serialise
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.files import strict_json
from moe_model.files.atomic_folder import AtomicFolder, check_destination
from moe_model.files.whole_file import read_file, reason
from moe_model.text.tokenizer_settings import UNSAID, TokenizerSettings

_OURS = re.compile(
    r"manifest\.json|shared\.safetensors|tokenizer(_config)?\.json|chat_template\.jinja|experts(/layer_\d{4}(/expert_\d{4}\.safetensors)?)?"
)

# (files done, files in all)
Progress = Callable[[int, int], None]


class CheckpointWriter:
    """A context manager. Left cleanly, the checkpoint is at `dest`; left by an exception, nothing changed."""

    def __init__(
        self,
        dest: str | Path,
        config: ModelConfig,
        dtype: torch.dtype,
        generation: GenerationDefaults,
        *,
        force: bool = False,
    ) -> None:
        generation.check(config.vocab_size)
        dtype_name(dtype)
        family = family_of(config)
        self._shared_shapes = family.shared_shapes(config)
        self._expert_shapes = family.expert_shapes(config)
        self._float32 = family.float32_names(config)
        self._config, self._dtype, self._generation = config, dtype, generation
        self._dest = Path(dest).absolute()
        self._folder = AtomicFolder(self._dest, _require_replaceable if force else None)
        self._files: dict[str, FileEntry] = {}

    @property
    def num_files(self) -> int:
        """Files written so far; the manifest counts when it is written."""
        return len(self._files)

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self._files.values())

    def __enter__(self) -> Self:
        self._folder.create()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._write_manifest()
                self._folder.commit()
        finally:
            self._folder.discard()

    def write_shared(self, tensors: Mapping[str, Tensor]) -> None:
        data = serialise(tensors, self._shared_shapes, self._dtype, SHARED, self._float32)
        self._write(SHARED, data)

    def write_expert(self, layer: int, expert: int, tensors: Mapping[str, Tensor]) -> None:
        name = expert_file(layer, expert)
        if not (0 <= layer < self._config.n_layers and expert in self._config.experts_of(layer)):
            raise CheckpointError(f"{name}: the model has no such expert")
        self._write(name, serialise(tensors, self._expert_shapes, self._dtype, name))

    def write_tokenizer(self, data: bytes) -> None:
        self._write(TOKENIZER, data)

    def write_tokenizer_settings(self, settings: TokenizerSettings) -> None:
        """The default template in a file of its own; nothing where there is nothing to say."""
        if settings.default_template is not None:
            self._write(CHAT_TEMPLATE, settings.default_template.encode())
        if settings.with_default_template(None) != UNSAID:
            self._write(TOKENIZER_CONFIG, settings.to_bytes())

    def _write_manifest(self) -> None:
        missing = next((name for name in tensor_files(self._config) if name not in self._files), None)
        if missing is not None:
            raise CheckpointError(f"{missing}: was not written")
        manifest = Manifest(self._config, self._dtype, self._generation, dict(self._files))
        self._write(MANIFEST, manifest.to_bytes())

    def _write(self, name: str, data: bytes) -> None:
        if name in self._files:
            raise CheckpointError(f"{name}: written twice")
        path = self._folder.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"{self._dest / name}: cannot be written: {reason(error)}") from None
        self._files[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())


def require_free(dest: str | Path, *, force: bool) -> None:
    """Raises CheckpointError if a writer for `dest` would refuse to start: the answer before long work."""
    check_destination(Path(dest).absolute(), _require_replaceable if force else None)


def _require_replaceable(dest: Path) -> None:
    """--force replaces a checkpoint of ours and nothing else: a wrong path costs no home directory."""
    if not stat.S_ISDIR(dest.lstat().st_mode):
        raise CheckpointError(f"{dest}: is not a folder, so --force does not replace it")
    names = sorted(path.relative_to(dest).as_posix() for path in dest.rglob("*"))
    foreign = next((name for name in names if not _OURS.fullmatch(name)), None)
    if foreign is not None:
        raise CheckpointError(
            f"{dest}: holds {foreign[:200]!r}, not of a checkpoint, so --force does not replace it"
        )
    if names and not _has_our_manifest(dest):
        raise CheckpointError(f"{dest}: is not a checkpoint, so --force does not replace it")


def _has_our_manifest(folder: Path) -> bool:
    try:
        manifest = strict_json.loads(read_file(folder / MANIFEST, max_size=MAX_MANIFEST_BYTES))
    except (ValueError, CheckpointError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT
