"""Our checkpoint format: a folder that is read piece by piece and never trusted.

manifest.json                                   what the model is; size and SHA-256 of every other file
shared.safetensors                              embedding, attention, norms, routers, head
experts/layer_0000/expert_0000.safetensors      one file per expert module of one layer
tokenizer.json                                  optional
chat_template.jinja                             optional
tokenizer_config.json                           optional: special tokens, templates with other names
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from moe_model.checkpoint import safetensors_file
from moe_model.checkpoint.manifest import (
    CHAT_TEMPLATE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SHARED,
    TOKENIZER,
    TOKENIZER_CONFIG,
    FileEntry,
    GenerationDefaults,
    Manifest,
    expert_file,
)
from moe_model.checkpoint.reader import Checkpoint, OnBytes
from moe_model.checkpoint.recognise import POINTER, is_pointer
from moe_model.checkpoint.summed_file import converted, read_summed
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.families.base import Shapes
from moe_model.files.piece_file import PieceFile
from moe_model.files.whole_file import read_file, require_folder, require_regular_file
from moe_model.text.tokenizer_json import MAX_TOKENIZER_BYTES
from moe_model.text.tokenizer_settings import (
    MAX_CHAT_TEMPLATE_BYTES,
    MAX_SETTINGS_BYTES,
    UNSAID,
    TokenizerSettings,
)

# The files that hold no tensors, and how large they may be.
_TEXTS = {
    TOKENIZER: MAX_TOKENIZER_BYTES,
    CHAT_TEMPLATE: MAX_CHAT_TEMPLATE_BYTES,
    TOKENIZER_CONFIG: MAX_SETTINGS_BYTES,
}


@dataclass(frozen=True, slots=True)
class OwnCheckpoint(Checkpoint):
    """Our own format."""

    format: ClassVar[str] = "expertmesh"
    path: Path
    config: ModelConfig
    dtype: torch.dtype
    generation: GenerationDefaults
    files: Mapping[str, FileEntry]
    fingerprint: str
    notes: tuple[str, ...]
    digests: Mapping[str, str]
    _shared_shapes: Shapes
    _expert_shapes: Shapes
    _float32: frozenset[str]

    @classmethod
    def open_folder(cls, folder: Path) -> Self:
        """Checks the manifest, and that every file it lists is there with the right size.

        Raises CheckpointError naming the file or the key. Cheap: reads the manifest and no other file.
        """
        data = read_file(folder / MANIFEST, max_size=MAX_MANIFEST_BYTES)
        if is_pointer(folder / MANIFEST):
            raise CheckpointError(f"{folder / MANIFEST}: {POINTER}")
        manifest = Manifest.parse(data, str(folder / MANIFEST))
        family = family_of(manifest.config)
        checkpoint = cls(
            path=folder,
            config=manifest.config,
            dtype=manifest.dtype,
            generation=manifest.generation,
            files=manifest.files,
            fingerprint=hashlib.sha256(data).hexdigest(),
            notes=(),
            digests={},
            _shared_shapes=family.shared_shapes(manifest.config),
            _expert_shapes=family.expert_shapes(manifest.config),
            _float32=family.float32_names(manifest.config),
        )
        checkpoint._check_files()
        return checkpoint

    @property
    def experts_bytes(self) -> int:
        return sum(entry.size for name, entry in self.files.items() if name != SHARED and name not in _TEXTS)

    def read_shared(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        on_bytes: OnBytes | None = None,
    ) -> dict[str, Tensor]:
        tensors = self._read_tensors(SHARED, self._shared_shapes, dtype, device)
        if on_bytes is not None:
            on_bytes(self.files[SHARED].size, self.files[SHARED].size)
        return tensors

    def read_expert(
        self, layer: int, expert: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        return self._read_tensors(expert_file(layer, expert), self._expert_shapes, dtype, device)

    def expert_sha256(self, layer: int, expert: int) -> str:
        found = self.files[expert_file(layer, expert)].sha256
        assert found is not None, "a manifest has the sum of every file"
        return found

    def read_tokenizer(self) -> bytes | None:
        return bytes(self._read_file(TOKENIZER)) if TOKENIZER in self.files else None

    def read_tokenizer_settings(self) -> TokenizerSettings:
        settings = UNSAID
        if TOKENIZER_CONFIG in self.files:
            settings = TokenizerSettings.from_json(
                self._read_file(TOKENIZER_CONFIG), str(self.path / TOKENIZER_CONFIG)
            )
        if CHAT_TEMPLATE not in self.files:
            return settings
        try:
            return settings.with_default_template(self._read_file(CHAT_TEMPLATE).decode())
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path / CHAT_TEMPLATE}: is not UTF-8") from None

    def verify(self, on_file: Callable[[str], None] | None = None) -> int:
        for name in self.files:
            if name in _TEXTS:
                self._read_file(name)
            else:
                self._read_stored(name, self._shapes_of(name))
            if on_file is not None:
                on_file(name)
        return len(self.files)

    def _shapes_of(self, name: str) -> Shapes:
        return self._shared_shapes if name == SHARED else self._expert_shapes

    def _check_files(self) -> None:
        for folder in sorted({(self.path / name).parent for name in self.files} - {self.path}):
            require_folder(folder)
            if folder.parent != self.path:
                require_folder(folder.parent)
        for name, entry in self.files.items():
            if name in _TEXTS:
                fits = entry.size <= _TEXTS[name]
            else:
                shapes, dtype = self._shapes_of(name), self.dtype
                least = safetensors_file.num_data_bytes(shapes, dtype, self._float32)
                fits = least < entry.size <= safetensors_file.max_bytes(shapes, dtype, self._float32)
            if not fits:
                raise CheckpointError(
                    f"{self.path / MANIFEST}: {name}: {entry.size} bytes do not fit the model"
                )
            path = self.path / name
            if path.is_file() and path.stat().st_size != entry.size and is_pointer(path):
                raise CheckpointError(f"{path}: {POINTER}")
            require_regular_file(path, entry.size)

    def _read_tensors(
        self, name: str, shapes: Shapes, dtype: torch.dtype | None, device: str | torch.device
    ) -> dict[str, Tensor]:
        stored, where = self._read_stored(name, shapes), str(self.path / name)
        return converted(stored, dtype or self.dtype, device, where, self._float32)

    def _read_stored(self, name: str, shapes: Shapes) -> dict[str, Tensor]:
        entry, file = self._entry(name), PieceFile(self.path / name, follow_links=False)
        self._check_size(name, file.size)
        assert entry.sha256 is not None, "a manifest has the sum of every file"
        return read_summed(file, entry.sha256, shapes, self.dtype, self._float32)

    def _entry(self, name: str) -> FileEntry:
        entry = self.files.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path}: the model has no {name}")
        return entry

    def _check_size(self, name: str, size: int) -> None:
        expected = self._entry(name).size
        if size != expected:
            raise CheckpointError(f"{self.path / name}: has {size} bytes, its manifest says {expected}")

    def _read_file(self, name: str) -> bytearray:
        """The whole file, once, so that what was summed is what is parsed."""
        entry = self._entry(name)
        data = read_file(self.path / name, max_size=entry.size)
        self._check_size(name, len(data))
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CheckpointError(f"{self.path / name}: SHA-256 is not the manifest's: the file has changed")
        return data


FORMAT = OwnCheckpoint
