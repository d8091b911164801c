"""From a checkpoint on disk to a Model: the shared part here, the experts wherever the caller has them."""

import threading
from collections.abc import Mapping

import torch

from moe_model.checkpoint.expert_files import read_expert_file
from moe_model.checkpoint.reader import Checkpoint, OnBytes
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import family_of
from moe_model.halt import Halt
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import step_program
from moe_model.kernels.quantise import matrix_bytes
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.dense import SharedModel
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_slices import WHOLE, check_slices
from moe_model.layers.experts import ExpertBackend
from moe_model.layers.stored_matrix import BLOCK_INPUTS
from moe_model.machine import FreedMemory, give_back_freed_memory
from moe_model.model import Model
from moe_model.names import StoredForm, WeightForm, stored_form
from moe_model.versions.expert_versions import Catalog, ExpertModule
from moe_model.versions.local_experts import LocalExperts

_WHICH: Mapping[StoredForm, str] = {"mxfp4": "", "fp8": " with 128 inputs to a block"}


def load_model(
    checkpoint: Checkpoint,
    experts: ExpertBackend,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels | None = None,
    on_bytes: OnBytes | None = None,
    form: WeightForm = "model",
) -> Model:
    """As `load_shared`, and the model of it; `kernels` None: torch's."""
    kernels = kernels or TorchKernels()
    shared = load_shared(checkpoint, dtype, device, kernels, on_bytes, form)
    return model_of(checkpoint, shared, experts, kernels)


def load_shared(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels,
    on_bytes: OnBytes | None = None,
    form: WeightForm = "model",
) -> SharedModel:
    """Reads the shared part; `form` rounds its matrices. Raises CheckpointError naming file and tensor, and
    what `on_bytes` does."""
    config = checkpoint.config
    tensors = checkpoint.take_shared(dtype, device, on_bytes)
    shared = family_of(config).build_shared(config, tensors, kernels, form=form)
    assert not tensors, f"a family that has no use for {sorted(tensors)}"
    give_back_freed_memory()
    return shared


def model_of(checkpoint: Checkpoint, shared: SharedModel, experts: ExpertBackend, kernels: Kernels) -> Model:
    """Of a shared part that these kernels have packed."""
    return Model(checkpoint.config, shared, experts, step_program(kernels, shared))


def load_module(
    checkpoint: Checkpoint,
    module: ExpertModule,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels,
    *,
    form: WeightForm = "model",
    freed: FreedMemory | None = None,
) -> tuple[Expert, int]:
    """One module, from the checkpoint or from its own file, and how many bytes its tensors have in memory.
    `freed` is told what was read, which is more where it is rounded.

    `form` is what matrices are rounded to, or the one that they are stored in; kernels that cannot keep
    that one get numbers of `dtype`. Raises CheckpointError naming the file and the tensor.
    """
    config, stored = checkpoint.config, stored_form(form)
    if stored is not None and not kernels.keeps_stored:
        stored, form = None, "model"
    if stored is None:
        tensors = _read(checkpoint, module, dtype, device)
    else:
        tensors = _read_stored(checkpoint, module, dtype, stored)
    num_bytes = sum(_num_bytes(tensor, form) for tensor in tensors.values())
    num_read = sum(tensor.nbytes for tensor in tensors.values())
    expert = family_of(config).build_expert(config, tensors, kernels, form=form)
    del tensors
    if freed is not None:
        freed.add(num_read)
    return expert, num_bytes


def _read(
    checkpoint: Checkpoint, module: ExpertModule, dtype: torch.dtype, device: str | torch.device
) -> dict[str, torch.Tensor]:
    config, layer, part = checkpoint.config, module.layer, module.part
    if module.file is None:
        if part == WHOLE:
            return checkpoint.read_expert(layer, module.expert, dtype, device)
        return checkpoint.read_slice(layer, module.expert, part, dtype, device)
    if layer not in config.moe_layers:
        raise CheckpointError(f"{module.file.path}: the model has no layer {layer} with experts")
    tensors = read_expert_file(module.file, config, checkpoint.dtype, dtype, device)
    return tensors if part == WHOLE else family_of(config).cut_expert(tensors, part)


def _read_stored(
    checkpoint: Checkpoint, module: ExpertModule, dtype: torch.dtype, form: StoredForm
) -> dict[str, torch.Tensor]:
    if module.file is not None:
        raise CheckpointError(f"{module.file.path}: has plain numbers, and experts are kept in {form}")
    if checkpoint.expert_form != form:
        raise CheckpointError(f"{checkpoint.path}: {_not_stored(checkpoint, form)}")
    tensors = checkpoint.read_stored_expert(module.layer, module.expert, dtype)
    return tensors if module.part == WHOLE else family_of(checkpoint.config).cut_expert(tensors, module.part)


def check_form(checkpoint: Checkpoint, form: WeightForm, num_slices: int) -> None:
    """Raises ConfigError where the checkpoint's experts are not stored in a form that none are rounded to, or
    cannot be in so many slices."""
    stored = stored_form(form)
    if stored is not None and checkpoint.expert_form != stored:
        raise ConfigError(f"expert_dtype: {checkpoint.path}: {_not_stored(checkpoint, stored)}")
    check_slices(checkpoint.config.d_ff, num_slices, 1 if stored is None else BLOCK_INPUTS[stored])


def _not_stored(checkpoint: Checkpoint, form: StoredForm) -> str:
    found = checkpoint.experts_stored_as
    return f"{form} is for experts that are stored in it{_WHICH[form]}, these are in {found}"


def load_local_experts(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels | None = None,
    *,
    form: WeightForm = "model",
    num_slices: int = 1,
    halt: Halt | None = None,
    on_bytes: OnBytes | None = None,
) -> LocalExperts:
    """Reads every expert into this process, in so many slices. Raises CheckpointError naming the file and the
    tensor; once `halt` is set HaltedError, also of a later load."""
    config, kernels, halt = checkpoint.config, kernels or TorchKernels(), halt or Halt()
    num_modules = num_slices * config.num_expert_modules
    progress = ModuleProgress(checkpoint.experts_bytes, num_modules, on_bytes)
    freed = FreedMemory()

    def load(module: ExpertModule) -> Expert:
        halt.check()
        expert, _ = load_module(checkpoint, module, dtype, device, kernels, form=form, freed=freed)
        progress.add(1)
        return expert

    experts = LocalExperts(Catalog.of_checkpoint(config), kernels, load, num_slices)
    give_back_freed_memory()
    return experts


class ModuleProgress:
    """Turns modules that are loaded into bytes that were read of all. Any thread; silent once all are."""

    def __init__(self, num_bytes: int, num_modules: int, on_bytes: OnBytes | None) -> None:
        self._num_bytes, self._num_modules, self._on_bytes = num_bytes, num_modules, on_bytes
        self._num_loaded = 0
        self._lock = threading.Lock()

    @property
    def num_loaded(self) -> int:
        return self._num_loaded

    def add(self, count: int) -> None:
        with self._lock:
            is_new = self._num_loaded < self._num_modules
            self._num_loaded += count
            done = min(self._num_loaded, self._num_modules) * self._num_bytes // self._num_modules
        if is_new and self._on_bytes is not None:
            self._on_bytes(done, self._num_bytes)


def _num_bytes(tensor: torch.Tensor, form: WeightForm) -> int:
    if stored_form(form):
        return tensor.nbytes
    return matrix_bytes(tensor.shape, tensor.dtype, form) if tensor.dim() == 2 else tensor.nbytes
