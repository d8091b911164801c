"""The checkpoint of a cell: a folder as it is, or a model of random weights that is made once and kept."""

import hashlib
import json
from pathlib import Path

from moe_model.checkpoint.initialise import initialise_checkpoint, initialise_like
from moe_model.checkpoint.manifest import DTYPES
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, ConfigError
from scaling.cell import Cell
from scaling.shape import config_of, is_own_config

# Of all random models; another number here, and those that were kept are not used any more.
_SEED, _VERSION = 0, 1


def checkpoint_of(cell: Cell, base: Path, cache: Path) -> Path:
    """The folder of a cell's model; one that is not there yet is made below `cache`. `base`: what `model` is
    relative to. Raises CheckpointError, ConfigError."""
    path = base / cell.model
    if path.is_dir():
        if cell.layers is not None:
            raise ConfigError(f"{cell.model}: layers: of a config.json only")
        return path
    if not path.is_file():
        raise ConfigError(f"{cell.model}: neither a checkpoint nor a config.json, looked for in {base}")
    folder = cache / _name(path, cell)
    if not _is_whole(folder):
        cache.mkdir(parents=True, exist_ok=True)
        _make(path, cell, folder)
    return folder


def _name(path: Path, cell: Cell) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{cell.model}: no config.json; a checkpoint is given by its folder") from error
    said = json.dumps([text, cell.layers, cell.dtype, _SEED, _VERSION])
    return f"{path.stem}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        Checkpoint.open(folder)
    except CheckpointError:
        return False
    return True


def _make(path: Path, cell: Cell, folder: Path) -> None:
    config, dtype = config_of(path, cell.layers), DTYPES[cell.dtype]
    if is_own_config(path):
        initialise_checkpoint(folder, config, seed=_SEED, dtype=dtype, force=True)
    else:
        initialise_like(folder, RandomModel(config, _SEED, dtype=dtype), force=True)
