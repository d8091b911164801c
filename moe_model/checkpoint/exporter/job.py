"""One export from beginning to end. Memory: the shared part and one expert, whatever the model's size."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_model.checkpoint.exporter.layout import Layout
from moe_model.checkpoint.exporter.shards import ShardWriter, write_durably
from moe_model.checkpoint.exporter.texts import as_json, generation_file, token_ids, tokenizer_files
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.checkpoint.manifest import dtype_name
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG
from moe_model.checkpoint.writer import Progress
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import HUGGING_FACE, family_of
from moe_model.families.hugging_face import ConfigKeys, HuggingFaceModel
from moe_model.files.atomic_folder import AtomicFolder
from moe_model.text.tokenizer_settings import TokenizerSettings

# As the library that wrote most of the published ones.
SHARD_BYTES = 5 * 10**9


class Model(Protocol):
    """What is written: a Checkpoint, or anything that has as much to say."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def generation(self) -> GenerationDefaults: ...
    def read_shared(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]: ...
    def read_expert(self, layer: int, expert: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]: ...
    def read_tokenizer(self) -> bytes | None: ...
    def read_tokenizer_settings(self) -> TokenizerSettings: ...


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """`dtype` None: the model's own. No file has more than `shard_bytes` of tensors."""

    dtype: torch.dtype | None = None
    shard_bytes: int = SHARD_BYTES


def export_checkpoint(
    model: Model,
    dest: str | Path,
    options: ExportOptions = ExportOptions(),
    on_progress: Progress | None = None,
) -> None:
    """Writes a folder of config.json, safetensors and what there is of a tokenizer, whole or not at all.

    Raises ConfigError for a model that its authors have no such folder for, CheckpointError where `dest` is
    taken or cannot be written.
    """
    names, dtype = _names(model.config), options.dtype or model.dtype
    settings = config_json(model.config, model.generation, dtype)
    layout = Layout(model.config, names, dtype)
    texts = {HUGGING_FACE_CONFIG: as_json(settings), **generation_file(model.generation)}
    texts |= tokenizer_files(model.read_tokenizer(), model.read_tokenizer_settings())
    folder = AtomicFolder(Path(dest).absolute(), _refuse)
    try:
        folder.create()
        with ShardWriter(folder.path, layout.tensors(), options.shard_bytes) as writer:
            _write_tensors(model, layout, dtype, writer, on_progress)
        for name, data in texts.items():
            write_durably(folder.path / name, data)
        folder.commit()
    finally:
        folder.discard()


def config_json(config: ModelConfig, generation: GenerationDefaults, dtype: torch.dtype) -> dict[str, Any]:
    """Raises ConfigError for a config that a config.json cannot say."""
    names = _names(config)
    settings = {
        "architectures": [family_of(config).architecture],
        "model_type": next(kind for kind, family in HUGGING_FACE.items() if family == config.family),
        **names.write_config(config),
    }
    keys = ConfigKeys(settings)
    read = names.read_config(keys)
    keys.finish()
    if (found := _difference(read.to_dict(), config.to_dict())) is not None:
        raise ConfigError(f"{found} cannot be said in a {HUGGING_FACE_CONFIG} of {settings['model_type']}")
    return settings | token_ids(generation) | {"dtype": dtype_name(dtype)}


def _names(config: ModelConfig) -> HuggingFaceModel:
    family = family_of(config)
    if family.hugging_face is None:
        raise ConfigError(
            f"family: {config.family} has no Hugging Face folders: its authors' files are of another format"
        )
    return family.hugging_face


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first key whose values differ."""
    for name in sorted({*a, *b}):
        if a.get(name) != b.get(name):
            inner = a.get(name), b.get(name)
            if all(isinstance(each, Mapping) for each in inner):
                return f"{name}: {_difference(a[name], b[name])}"
            return f"{name} {b.get(name)}"
    return None


def _write_tensors(
    model: Model, layout: Layout, dtype: torch.dtype, writer: ShardWriter, on_progress: Progress | None
) -> None:
    num_modules = 1 + model.config.num_expert_modules
    shared = model.read_shared(dtype)
    for piece in layout.shared():
        writer.write(piece.name, piece.item, piece.of(shared))
    del shared
    for done, (layer, expert) in enumerate(layout.experts(), 1):
        if on_progress is not None:
            on_progress(done, num_modules)
        tensors = model.read_expert(layer, expert, dtype)
        for piece in layout.expert(layer, expert):
            writer.write(piece.name, piece.item, piece.of(tensors))


def _refuse(dest: Path) -> None:
    raise CheckpointError(f"{dest}: exists already; an export replaces nothing")
