"""manifest.json of a checkpoint: what a model is, and the sum of every file. Reads no files.

The names of the files follow from the model config, so a name in a manifest is compared and never used.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Self

import torch

from moe_model.checkpoint.generation_defaults import GenerationDefaults as GenerationDefaults
from moe_model.checkpoint.json_values import check_keys, is_int
from moe_model.checkpoint.recognise import MANIFEST as MANIFEST
from moe_model.checkpoint.recognise import MAX_FILE_BYTES as MAX_FILE_BYTES
from moe_model.config import MODEL_KEYS_OF_VERSION_1, ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import read_model_config
from moe_model.files import strict_json
from moe_model.files.strict_json import brief
from moe_model.names import DTYPE_NAMES
from moe_model.text.tokenizer_settings import CHAT_TEMPLATE as CHAT_TEMPLATE

FORMAT = "expertmesh"
# What is written. Version 1 is version 2 without the keys that came later.
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
SHARED = "shared.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
DTYPES: Mapping[str, torch.dtype] = MappingProxyType({name: getattr(torch, name) for name in DTYPE_NAMES})
MAX_MANIFEST_BYTES = 64 << 20

_KEYS = {"format", "format_version", "model", "dtype", "generation", "tokenizer", "files"}


def expert_file(layer: int, expert: int) -> str:
    return f"experts/layer_{layer:04d}/expert_{expert:04d}.safetensors"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file; None where nothing says what it should be."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest. `parse`, the only way in from outside, checks all that a manifest alone can show."""

    config: ModelConfig
    dtype: torch.dtype
    generation: GenerationDefaults
    files: Mapping[str, FileEntry]

    @classmethod
    def parse(cls, data: bytes | bytearray, where: str) -> Self:
        """Raises CheckpointError naming the key."""
        try:
            return cls._from_json(strict_json.loads(data))
        except (ValueError, RecursionError, ConfigError) as error:
            raise CheckpointError(f"{where}: {error}") from None

    @classmethod
    def _from_json(cls, data: object) -> Self:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConfigError(f"is not a manifest of format {FORMAT!r}")
        version = _read_version(data)
        check_keys(data, _KEYS)
        config = read_model_config(data["model"], where="model")
        if version == 1 and (later := config.to_dict().keys() - MODEL_KEYS_OF_VERSION_1):
            raise ConfigError(f"model: unknown key {min(later)!r} in a manifest of version 1")
        if not isinstance(data["dtype"], str) or data["dtype"] not in DTYPES:
            raise ConfigError(f"dtype: {brief(data['dtype'])} is not one of {', '.join(DTYPES)}")
        try:
            generation = GenerationDefaults.from_dict(data["generation"], version)
            generation.check(config.vocab_size)
        except ConfigError as error:
            raise ConfigError(f"generation: {error}") from None
        if data["tokenizer"] not in (None, TOKENIZER):
            raise ConfigError(f"tokenizer: {brief(data['tokenizer'])} is neither {TOKENIZER!r} nor null")
        files = _parse_files(data["files"], config, has_tokenizer=data["tokenizer"] is not None)
        return cls(config, DTYPES[data["dtype"]], generation, files)

    def to_bytes(self) -> bytes:
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.config.to_dict(),
            "dtype": dtype_name(self.dtype),
            "generation": self.generation.to_dict(),
            "tokenizer": TOKENIZER if TOKENIZER in self.files else None,
            "files": {name: asdict(entry) for name, entry in sorted(self.files.items())},
        }
        return (json.dumps(data, indent=2) + "\n").encode()


def _read_version(data: Mapping[str, object]) -> int:
    version = data.get("format_version")
    if not is_int(version) or version not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise ConfigError(f"format_version: {brief(version)} is unknown, {known} are known")
    assert isinstance(version, int)
    return version


def dtype_name(dtype: torch.dtype) -> str:
    """Raises ConfigError for a dtype that a checkpoint cannot have."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ConfigError(f"dtype: {dtype} is not one of {', '.join(DTYPES)}")


def tensor_files(config: ModelConfig) -> Iterator[str]:
    """The names of every file that holds tensors."""
    yield SHARED
    for layer in config.moe_layers:
        for expert in config.experts_of(layer):
            yield expert_file(layer, expert)


def _parse_files(data: object, config: ModelConfig, *, has_tokenizer: bool) -> Mapping[str, FileEntry]:
    if not isinstance(data, dict):
        raise ConfigError("files: expected an object")
    # The config is still only a claim: count before anything of its size is made.
    extras = [TOKENIZER] * has_tokenizer
    extras += [name for name in (CHAT_TEMPLATE, TOKENIZER_CONFIG) if name in data]
    num_expected = 1 + config.num_expert_modules + len(extras)
    if len(data) > num_expected:
        known = {*tensor_files(config), *extras}
        raise ConfigError(f"files: unknown name {min(set(data) - known)[:200]!r}")
    files: dict[str, FileEntry] = {}
    for name in extras:
        files[name] = _parse_entry(name, data)
    for name in tensor_files(config):
        files[name] = _parse_entry(name, data)
    return MappingProxyType(files)


def _parse_entry(name: str, files: Mapping[str, object]) -> FileEntry:
    if name not in files:
        raise ConfigError(f"files: {name!r} is missing")
    entry = files[name]
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        raise ConfigError(f"files: {name!r}: expected size and sha256")
    if not is_int(entry["size"]) or not 0 <= entry["size"] <= MAX_FILE_BYTES:
        raise ConfigError(f"files: {name!r}: size {brief(entry['size'])} is not in [0, {MAX_FILE_BYTES}]")
    if not isinstance(entry["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise ConfigError(f"files: {name!r}: sha256 is not 64 lower-case hex digits")
    return FileEntry(entry["size"], entry["sha256"])
