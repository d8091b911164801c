"""A file with one expert module, or with an expert's row of a router, that has not been checked yet."""

import hashlib
from pathlib import Path

import torch

from moe_model.checkpoint import safetensors_file
from moe_model.errors import CheckpointError
from moe_model.families.base import Shapes
from moe_model.files.whole_file import read_file
from moe_model.layers.router import RouterWeights
from moe_model.versions.expert_versions import ExpertFile

_ROW, _BIAS, _CORRECTION = "router.weight", "router.bias", "router.correction"
_NONE: frozenset[str] = frozenset()
_FLOAT32 = frozenset({_CORRECTION})


def check_module(path: str, shapes: Shapes, dtype: torch.dtype, sha256: str | None = None) -> ExpertFile:
    """Reads all of it. Raises CheckpointError naming the file and the tensor unless it holds just these
    tensors, of that dtype and all of them finite, in a file whose SHA-256 is the one given, if one is."""
    data = _read(path, shapes, dtype, _NONE)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"{path}: SHA-256 is {found}, not the one given")
    safetensors_file.parse(data, shapes, dtype, path)
    return ExpertFile(path, len(data), found)


def read_router_row(path: str, like: RouterWeights, stored: torch.dtype) -> RouterWeights:
    """A router of one expert, with the parts of `like`, in its dtype: `router.weight` [D], `router.bias` [1]
    and `router.correction` [1]. `stored` is the file's dtype, but corrections are float32. Raises as
    `check_module`."""
    shapes: Shapes = {_ROW: (like.weight_ED.shape[1],)}
    if like.bias_E is not None:
        shapes[_BIAS] = (1,)
    if like.correction_E is not None:
        shapes[_CORRECTION] = (1,)
    views = safetensors_file.parse(_read(path, shapes, stored, _FLOAT32), shapes, stored, path, _FLOAT32)
    row = safetensors_file.owned(views, like.weight_ED.dtype, "cpu", path, _FLOAT32)
    return RouterWeights(row[_ROW][None], row.get(_BIAS), row.get(_CORRECTION))


def _read(path: str, shapes: Shapes, dtype: torch.dtype, float32: frozenset[str]) -> bytearray:
    if "\0" in path or not Path(path).is_absolute():
        raise CheckpointError(f"{path}: is not an absolute path")
    return read_file(Path(path), max_size=safetensors_file.max_bytes(shapes, dtype, float32))
