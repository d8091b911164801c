"""One import from beginning to end. Memory: one expert and the shared part, whatever the model's size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from moe_model.checkpoint.hugging_face.checkpoint import HuggingFaceCheckpoint
from moe_model.checkpoint.hugging_face.texts import read_settings, read_tokenizer
from moe_model.checkpoint.importer.locate import Located, locate
from moe_model.checkpoint.importer.modularforge import ASSEMBLED_ROOTS
from moe_model.checkpoint.importer.routers import Routers, make_routers
from moe_model.checkpoint.importer.source_config import generation_defaults, model_config, read_config_file
from moe_model.checkpoint.importer.sources import AssembledSource, CheckpointSource, PartsSource, Source
from moe_model.checkpoint.importer.torch_file import load_torch_file
from moe_model.checkpoint.importer.wrappers import Wrappers
from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.checkpoint.recognise import hugging_face
from moe_model.checkpoint.tensor_table import SAFETENSORS_SUFFIX, SafetensorsTable, TensorTable
from moe_model.checkpoint.tokenizer_file import with_token_ids
from moe_model.checkpoint.writer import CheckpointWriter, Progress, require_free
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError, TokenizerError
from moe_model.text.tokenizer import vocabulary_of

_CONFIG_FILE = "config.yaml"
# The checked source, the model in it, what it says of sampling, and notes on what of that is not used.
_Opened = tuple[Source, ModelConfig, GenerationDefaults, list[str]]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was taken and assumed; for people."""

    config: ModelConfig
    dtype: torch.dtype
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """None: the source's own config, its router, its dtype (bfloat16 stays, everything else is float32)."""

    router: str | None = None
    config_path: Path | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    force: bool = False


def import_checkpoint(
    source: str | Path,
    dest: str | Path,
    options: ImportOptions = ImportOptions(),
    on_progress: Progress | None = None,
) -> ImportReport:
    """Writes `source` as a checkpoint of ours at `dest`.

    Raises CheckpointError, ConfigError or TokenizerError naming the file and the tensor or key; then nothing
    has been written and nothing replaced.
    """
    require_free(dest, force=options.force)
    located = locate(Path(source), with_router=options.router is not None)
    return _run(located, dest, options, on_progress)


def _run(
    located: Located, dest: str | Path, options: ImportOptions, on_progress: Progress | None
) -> ImportReport:
    notes, wrappers = [located.note], Wrappers()
    tokenizer = read_tokenizer(located.folder)
    settings = read_settings(located.folder)
    if not located.is_hugging_face:
        # ModularForge begins every text with it.
        settings = replace(settings, adds_bos=True)
    opened = _open_hugging_face if located.is_hugging_face else _open_modularforge
    model, config, generation, ignored = opened(located, options, wrappers, tokenizer)
    dtype = options.dtype or (torch.bfloat16 if model.is_bfloat16 else torch.float32)
    routers = Routers({}, "")
    if options.router is not None:
        routers = make_routers(options.router, config, options.seed, dtype)
        notes.append(routers.note)
    if tokenizer is None:
        notes.append(f"no tokenizer.json in {located.folder}: the checkpoint takes and gives token ids only")
    with CheckpointWriter(dest, config, dtype, generation, force=options.force) as writer:
        writer.write_shared(model.shared(dtype, routers.tensors))
        for layer, expert, tensors in model.experts(dtype):
            if on_progress is not None:
                on_progress(writer.num_files, 1 + config.num_expert_modules)
            writer.write_expert(layer, expert, tensors)
        if tokenizer is not None:
            writer.write_tokenizer(tokenizer)
        writer.write_tokenizer_settings(settings)
    return ImportReport(config, dtype, (*notes, *wrappers.notes, *ignored))


def _check_tokenizer(tokenizer: bytes, vocab_size: int, folder: Path) -> None:
    """It can be built, and has tokens of this model: another is not kept. Raises TokenizerError."""
    try:
        vocabulary_of(tokenizer, vocab_size)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from None


def _open_hugging_face(
    located: Located, options: ImportOptions, wrappers: Wrappers, tokenizer: bytes | None
) -> _Opened:
    if options.config_path is not None:
        raise ConfigError(f"{options.config_path}: --config is for models of ModularForge")
    checkpoint = HuggingFaceCheckpoint.open_folder(located.folder)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, checkpoint.config.vocab_size, located.folder)
    return CheckpointSource(checkpoint), checkpoint.config, checkpoint.generation, list(checkpoint.notes)


def _open_modularforge(
    located: Located, options: ImportOptions, wrappers: Wrappers, tokenizer: bytes | None
) -> _Opened:
    model, settings, config = _open(located, options, wrappers)
    generation, notes = generation_defaults(settings, config)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config.vocab_size, located.folder)
        generation = with_token_ids(generation, tokenizer, config.vocab_size)
    return model, config, generation, notes


def _open(
    located: Located, options: ImportOptions, wrappers: Wrappers
) -> tuple[Source, Mapping[str, Any], ModelConfig]:
    """The checked source, its whole configuration, and the model in it."""
    if located.assembled is None:
        settings, config = _config_beside(located, options)
        return PartsSource(located.folder, config, wrappers), settings, config
    table, embedded = _open_assembled(located.assembled, wrappers)
    if embedded is None:
        settings, config = _config_beside(located, options)
    else:
        settings, config = embedded, model_config(embedded, f"{located.assembled}: config")
        _check_given_config(config, options.config_path)
    bare = located.assembled.suffix == SAFETENSORS_SUFFIX
    return AssembledSource(table, config, bare=bare), settings, config


def _open_assembled(path: Path, wrappers: Wrappers) -> tuple[TensorTable, Mapping[str, Any] | None]:
    """The tensors, and the configuration if the file has one."""
    if path.suffix == SAFETENSORS_SUFFIX:
        return wrappers.renamed(SafetensorsTable(path), ASSEMBLED_ROOTS), None
    loaded = load_torch_file(path)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, got {type(loaded).__name__}")
    if "experts_state_dict" in loaded:
        raise CheckpointError(f"{path}: is one expert; give the folder that holds all parts")
    tensors = wrappers.state_dict(loaded, str(path))
    config = None if tensors is loaded else loaded.get("config")
    if config is not None and not isinstance(config, Mapping):
        raise CheckpointError(f"{path}: config: expected a mapping, got {type(config).__name__}")
    return wrappers.table(tensors, str(path), ASSEMBLED_ROOTS), config


def _config_beside(located: Located, options: ImportOptions) -> tuple[Mapping[str, Any], ModelConfig]:
    path = options.config_path or located.folder / _CONFIG_FILE
    if options.config_path is None and not path.exists():
        if (foreign := hugging_face(located.folder)) is not None:
            raise CheckpointError(f"{located.folder}: {foreign}")
        raise CheckpointError(
            f"{located.folder}: has no {_CONFIG_FILE}; name the configuration with --config"
        )
    settings = read_config_file(path)
    return settings, model_config(settings, str(path))


def _check_given_config(config: ModelConfig, path: Path | None) -> None:
    """A file that has a configuration is right about it; another one given may only agree."""
    if path is None:
        return
    given = model_config(read_config_file(path), str(path)).to_dict()
    for key, value in config.to_dict().items():
        if given[key] != value:
            raise ConfigError(f"{path}: model: {key} is {given[key]}, the assembled file says {value}")
