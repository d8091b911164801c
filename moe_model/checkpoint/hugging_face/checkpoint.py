"""A Hugging Face folder as a checkpoint: used as it was downloaded, nothing is written."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from moe_model.checkpoint.finite import require_finite
from moe_model.checkpoint.hugging_face.files import check_sum, digests, file_entries, fingerprint
from moe_model.checkpoint.hugging_face.folder import HuggingFaceFolder
from moe_model.checkpoint.hugging_face.generation import generation_defaults
from moe_model.checkpoint.hugging_face.quantised import QUANTIZATION
from moe_model.checkpoint.hugging_face.stored import Stored
from moe_model.checkpoint.hugging_face.texts import read_settings, read_tokenizer
from moe_model.checkpoint.manifest import FileEntry, GenerationDefaults
from moe_model.checkpoint.reader import Checkpoint, OnBytes
from moe_model.config import ModelConfig
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.names import StoredForm
from moe_model.text.tokenizer_settings import TokenizerSettings


@dataclass(frozen=True, slots=True)
class HuggingFaceCheckpoint(Checkpoint):
    """A folder of config.json, safetensors and a tokenizer. Holds no file open, so it may live for long."""

    format: ClassVar[str] = "hugging_face"
    path: Path
    config: ModelConfig
    dtype: torch.dtype
    generation: GenerationDefaults
    files: Mapping[str, FileEntry]
    fingerprint: str
    notes: tuple[str, ...]
    digests: Mapping[str, str]
    _folder: HuggingFaceFolder

    @classmethod
    def open_folder(cls, folder: Path) -> Self:
        """Reads the config, the headers of all files with tensors, and what there is of texts; no tensor.

        Raises CheckpointError, ConfigError, TokenizerError naming the file and the key or tensor.
        """
        opened = HuggingFaceFolder(folder)
        config, entries = opened.config, file_entries(folder, opened.table)
        of_tensors = digests(folder, opened.table)
        generation, notes = generation_defaults(folder, opened.settings, config, read_tokenizer(folder))
        return cls(
            path=folder,
            config=config,
            dtype=opened.dtype,
            generation=generation,
            files=entries,
            fingerprint=fingerprint(entries, of_tensors),
            notes=(*opened.notes, *notes),
            digests=of_tensors,
            _folder=opened,
        )

    @property
    def experts_bytes(self) -> int:
        return self._folder.experts_bytes

    @property
    def quantisation(self) -> str | None:
        found = self._folder.settings.get(QUANTIZATION)
        return None if found is None else str(found["quant_method"])

    @property
    def expert_form(self) -> StoredForm | None:
        return self._folder.expert_form

    @property
    def experts_stored_as(self) -> str:
        return self._folder.experts_stored_as

    def read_shared(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        on_bytes: OnBytes | None = None,
    ) -> dict[str, Tensor]:
        taken = self.take_shared(dtype or self.dtype, device, on_bytes)
        return {name: taken[name] for name in list(taken)}

    def take_shared(
        self, dtype: torch.dtype, device: str | torch.device, on_bytes: OnBytes | None = None
    ) -> Mapping[str, Tensor]:
        return self._folder.take_shared(dtype, device, on_bytes)

    def read_expert(
        self, layer: int, expert: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        return self._folder.read_expert(layer, expert, dtype or self.dtype, device)

    def read_stored_expert(self, layer: int, expert: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return self._folder.read_stored_expert(layer, expert, dtype)

    def read_slice(
        self,
        layer: int,
        expert: int,
        part: ExpertSlice,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> dict[str, Tensor]:
        return self._folder.read_slice(layer, expert, part, dtype or self.dtype, device)

    def expert_sha256(self, layer: int, expert: int) -> str:
        """By where it is in which folder: its values are not read for it."""
        return hashlib.sha256(f"{self.fingerprint} {layer} {expert}".encode()).hexdigest()

    def read_tokenizer(self) -> bytes | None:
        return read_tokenizer(self.path)

    def read_tokenizer_settings(self) -> TokenizerSettings:
        return read_settings(self.path)

    def verify(self, on_file: Callable[[str], None] | None = None) -> int:
        """The sum of each file where the folder says what it should be, and that all values are finite."""
        table, stored, num_sums = self._folder.table, self._stored(), 0
        for name, entry in self.files.items():
            if name in table.files:
                if entry.sha256 is not None:
                    check_sum(table.files[name].file, entry.sha256)
                    num_sums += 1
                for each in stored[name]:
                    _check_values(each, str(self.path / name))
            if on_file is not None:
                on_file(name)
        return num_sums

    def _stored(self) -> dict[str, list[Stored]]:
        """By the file that has most of it, each tensor of the folder that is used."""
        once = {each.stored.names[0]: each.stored for each in self._folder.found()}
        by_file: dict[str, list[Stored]] = {name: [] for name in self._folder.table.files}
        for name, stored in once.items():
            by_file[self._folder.table.file_of(name)].append(stored)
        return by_file


def _check_values(stored: Stored, where: str) -> None:
    """A stacked tensor item by item: all of it might be more than there is room for."""
    is_stacked = len(stored.shape) > 2
    num_rows = stored.shape[1 if is_stacked else 0]
    for item in range(stored.shape[0]) if is_stacked else (None,):
        require_finite(stored.read(item, 0, num_rows), stored.names[0], where)


FORMAT = HuggingFaceCheckpoint
