"""A file with one expert module, or with an expert's row of a router, that has not been checked yet."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from moe_model.checkpoint import safetensors_file
from moe_model.errors import CheckpointError
from moe_model.families.base import Shapes
from moe_model.files.whole_file import read_file
from moe_model.versions.expert_versions import ExpertFile

ROUTER_ROW = "router.weight"


def check_module(path: str, shapes: Shapes, dtype: torch.dtype, sha256: str | None = None) -> ExpertFile:
    """Reads all of it. Raises CheckpointError naming the file and the tensor unless it holds just these
    tensors, of that dtype and all of them finite, in a file whose SHA-256 is the one given, if one is."""
    data = _read(path, shapes, dtype)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"{path}: SHA-256 is {found}, not the one given")
    safetensors_file.parse(data, shapes, dtype, path)
    return ExpertFile(path, len(data), found)


def read_router_row(path: str, d_model: int, stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """`router.weight`, row_D, as `dtype`; `stored` is the file's. Raises as `check_module`."""
    shapes: Shapes = {ROUTER_ROW: (d_model,)}
    views = safetensors_file.parse(_read(path, shapes, stored), shapes, stored, path)
    return safetensors_file.owned(views, dtype, "cpu", path)[ROUTER_ROW]


def _read(path: str, shapes: Shapes, dtype: torch.dtype) -> bytearray:
    if "\0" in path or not Path(path).is_absolute():
        raise CheckpointError(f"{path}: is not an absolute path")
    return read_file(Path(path), max_size=safetensors_file.max_bytes(shapes, dtype))
