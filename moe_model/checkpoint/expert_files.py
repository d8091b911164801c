"""Expert modules in files of their own, outside the checkpoint, of which nothing is believed unchecked."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from moe_model.checkpoint import safetensors_file
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.files.whole_file import read_file
from moe_model.versions.expert_versions import ExpertFile


def read_expert_file(
    file: ExpertFile,
    config: ModelConfig,
    stored: torch.dtype,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """One module of the model, as `dtype` (None: as stored); `stored` is the dtype of the checkpoint's own.

    Raises CheckpointError, naming the file and where there is one the tensor, unless it is a regular file of
    the size and sum that were promised, has just the tensors of such a module, and all values are finite.
    """
    path, shapes = Path(file.path), family_of(config).expert_shapes(config)
    if not path.is_absolute():
        raise CheckpointError(f"{path}: is not an absolute path")
    data = read_file(path, max_size=min(file.size, safetensors_file.max_bytes(shapes, stored)))
    if len(data) != file.size:
        raise CheckpointError(f"{path}: has {len(data)} bytes, expected {file.size}")
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise CheckpointError(f"{path}: SHA-256 is not the one that was checked: the file has changed")
    views = safetensors_file.parse(data, shapes, stored, str(path))
    return safetensors_file.owned(views, dtype or stored, device, str(path))
