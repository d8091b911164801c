"""Checkpoints: models on disk, in our own format or as a Hugging Face folder, opened and not yet read."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from moe_model.checkpoint.given_away import GivenAway
from moe_model.checkpoint.manifest import MANIFEST, FileEntry, GenerationDefaults, dtype_name
from moe_model.checkpoint.recognise import (
    SNAPSHOTS,
    cached_name,
    is_present,
    is_readable_hugging_face,
    what_is,
)
from moe_model.checkpoint.writer import CheckpointWriter
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.files.mirrored import mirrored_folder, require_whole
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.names import StoredForm
from moe_model.text.tokenizer_settings import TokenizerSettings

__all__ = ["Checkpoint", "CheckpointWriter", "FileEntry", "GenerationDefaults", "OnBytes"]

# Is told of bytes that are there, and of all.
OnBytes = Callable[[int, int], None]


class Checkpoint(ABC):
    """An opened model, of whatever format: what it is has been checked, its tensors have not been read.

    Tensors have our names, the family's; `dtype` is that of what is stored, `fingerprint` differs where any
    file does; `digests` stand in it for files whose sums are not known; `notes` say, for people, what of the
    files is not used, `format` what they are. Whatever reads a model reads it from here, so another format is
    another class, and a row of `_FORMATS`.
    """

    path: Path
    config: ModelConfig
    dtype: torch.dtype
    generation: GenerationDefaults
    files: Mapping[str, FileEntry]
    fingerprint: str
    notes: tuple[str, ...]
    digests: Mapping[str, str]
    format: ClassVar[str]

    @property
    def quantisation(self) -> str | None:
        """How matrices are stored in fewer bits than `dtype` has, by its published name."""
        return None

    @property
    def expert_form(self) -> StoredForm | None:
        """In which form the matrices of all experts are stored and can be kept; None: in none."""
        return None

    @property
    def experts_stored_as(self) -> str:
        """How they are stored, for people."""
        return dtype_name(self.dtype)

    @property
    def name(self) -> str:
        """Of its folder, as it was given: a link's own, not its target's; in the hub's cache the model's."""
        return checkpoint_name(self.path)

    @property
    def location(self) -> str:
        """What another process opens it by, also one of another machine. It may hold secrets."""
        mirror = mirrored_folder(self.path)
        return str(self.path.resolve()) if mirror is None else mirror.location

    @staticmethod
    def open(path: str | Path) -> "Checkpoint":
        """Checks what can be checked without reading tensors. Raises CheckpointError, ConfigError or
        TokenizerError naming the file and the key or tensor."""
        folder = Path(path)
        require_whole(folder)
        module = next((module for module, is_it in _FORMATS.items() if is_it(folder)), None)
        if module is None:
            raise CheckpointError(f"{folder}: {what_is(folder)}")
        format_: type[Checkpoint] = importlib.import_module(module).FORMAT
        return format_.open_folder(folder)

    @classmethod
    @abstractmethod
    def open_folder(cls, folder: Path) -> Self:
        """As `open`, of a folder in this format."""

    @property
    @abstractmethod
    def experts_bytes(self) -> int:
        """What all experts have in the files."""

    @abstractmethod
    def read_shared(
        self,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        on_bytes: OnBytes | None = None,
    ) -> dict[str, Tensor]:
        """The shared part, as `dtype` (None: as stored), but for what the family keeps as float32. Raises
        CheckpointError naming file and tensor."""

    def take_shared(
        self, dtype: torch.dtype, device: str | torch.device, on_bytes: OnBytes | None = None
    ) -> Mapping[str, Tensor]:
        """As `read_shared`, for a reader that asks for each tensor once: it is not kept here then."""
        tensors = self.read_shared(dtype, device, on_bytes)
        return GivenAway(tensors, tensors.pop)

    @abstractmethod
    def read_expert(
        self, layer: int, expert: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """One expert module, as `dtype` (None: as stored). Raises CheckpointError naming file and tensor."""

    def read_stored_expert(self, layer: int, expert: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """One expert module in `expert_form`, where there is one: its matrices as `layers/stored_matrix.py`
        has them, the rest as `dtype`. Raises as `read_expert`."""
        raise AssertionError(f"{self.path}: experts are stored as {self.experts_stored_as}")

    def read_slice(
        self,
        layer: int,
        expert: int,
        part: ExpertSlice,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> dict[str, Tensor]:
        """A slice of an expert module. A format that has one sum for all of it reads all of it. Raises
        CheckpointError."""
        tensors = self.read_expert(layer, expert, dtype, device)
        return family_of(self.config).cut_expert(tensors, part)

    @abstractmethod
    def expert_sha256(self, layer: int, expert: int) -> str:
        """What tells one version of an expert module from another."""

    @abstractmethod
    def read_tokenizer(self) -> bytes | None:
        """The bytes of tokenizer.json, None without one. Raises CheckpointError."""

    @abstractmethod
    def read_tokenizer_settings(self) -> TokenizerSettings:
        """Special tokens, BOS and chat templates. Raises CheckpointError."""

    @abstractmethod
    def verify(self, on_file: Callable[[str], None] | None = None) -> int:
        """Reads every file, as it would be read for use. Raises CheckpointError for the first bad one.

        Returns for how many of `files` there is a sum that they had to have.
        """


# What a folder is in, by the module whose FORMAT reads it, loaded when one is met.
_FORMATS: Mapping[str, Callable[[Path], bool]] = {
    "moe_model.checkpoint.own_format": lambda folder: is_present(folder / MANIFEST),
    "moe_model.checkpoint.hugging_face.checkpoint": is_readable_hugging_face,
}


def checkpoint_name(path: Path) -> str:
    """The last part of a path as it was given; of one that ends in no name (`.`, `..`), the folder's own; of
    a snapshot in the cache of the Hugging Face hub, ORG/NAME; of a mirror, what is mirrored."""
    if (mirror := mirrored_folder(path)) is not None:
        return mirror.name
    if path.parent.name == SNAPSHOTS and (cached := cached_name(path.parent.parent)) is not None:
        return cached
    given = path.name
    return given if given not in ("", "..") else path.resolve().name or "model"
