"""Where a worker's modules come from: a checkpoint that is opened when the first of them is wanted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from expert_workers.worker.offer import Lender, Offer, open_offer
from moe_model.checkpoint.manifest import dtype_name, expert_file
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import KernelChoice, choose_kernels, kind_of
from moe_model.kernels.same_bits import KernelKind
from moe_model.layers.dispatch import Expert
from moe_model.loading import load_module
from moe_model.machine import FreedMemory
from moe_model.names import InstructionChoice, WeightForm
from moe_model.remote.mirror import Mirror
from moe_model.remote.open_url import mirror_of_url
from moe_model.remote.source import Range, RangeSource
from moe_model.remote.url import is_url, without_secrets
from moe_model.versions.expert_versions import ExpertModule


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Which worker it is and how it computes; what it holds, it is told later.

    `checkpoint_path` may be a URL, which is opened on the worker's own machine; `offer`: what to read where
    there is nothing at a path; `bytes_per_second`: what it fetches at most, and lends at most, of what no
    request waits for, None: as fast as it goes. `num_threads` is for a worker with a process of its own,
    None: all cores of its machine; `fingerprint` None takes any checkpoint; `form` rounds the experts'
    matrices; `num_slices` are those of each expert, of which the worker is told which to hold.
    """

    rank: int
    checkpoint_path: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    num_threads: int | None = None
    fingerprint: str | None = None
    kernels: KernelChoice = "auto"
    form: WeightForm = "model"
    num_slices: int = 1
    instruction_set: InstructionChoice = "auto"
    offer: Offer | None = None
    bytes_per_second: float | None = None

    @property
    def precision(self) -> str:
        """What all workers must have in common, or it would show which worker computed what."""
        kind = dtype_name(self.dtype) + ("" if self.form == "model" else f" with {self.form} experts")
        kind = kind if self.num_slices == 1 else f"{kind} in {self.num_slices} slices"
        return kind if self.instruction_set == "auto" else f"{kind} by {self.instruction_set}"

    def choose_kernels(self) -> Kernels:
        """Raises ConfigError for what cannot be had here."""
        return choose_kernels(self.kernels, self.device, self.num_threads, self.instruction_set)

    def kind_of(self, kernels: Kernels) -> KernelKind:
        return kind_of(kernels, self.dtype, self.form)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the modules of a source have in common: they take rows of `width` values of `rows_dtype`."""

    fingerprint: str
    width: int
    rows_dtype: torch.dtype
    kernels: Kernels


class ModuleSource(Protocol):
    """Opened by one thread at a time, before any module is read. Both raise ExpertMeshError naming the file
    and the reason."""

    def open(self) -> Opened:
        """The same every time."""

    def read(self, module: ExpertModule) -> tuple[Expert, int]:
        """The module, and how many bytes its tensors have in memory. Any thread."""


def _is_nothing(path: str) -> bool:
    """Whether there is no such path, or only an empty folder."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except OSError:
        # There is something else, of which its reader says what is wrong with it.
        return False


class CheckpointSource:
    """A ModuleSource over a checkpoint, and over files beside it."""

    def __init__(self, spec: WorkerSpec, elsewhere: RangeSource | None = None) -> None:
        """`elsewhere` has the files that the spec offers."""
        self._spec, self._elsewhere = spec, elsewhere
        self._opened: tuple[Checkpoint, Opened] | None = None
        self._mirror: Mirror | None = None
        self._lender: Lender | None = None
        self._freed = FreedMemory()

    @cached_property
    def has_files(self) -> bool:
        """Whether they are at the spec's path, or it is offered none. Looked at once: what is open is not
        opened from elsewhere later, and a heart must not stop with a disk that hangs."""
        if is_url(self._spec.checkpoint_path):
            return False
        is_offered = self._spec.offer is not None and self._elsewhere is not None
        return not is_offered or not _is_nothing(self._spec.checkpoint_path)

    @property
    def num_fetched(self) -> int:
        """Bytes that came from elsewhere."""
        return 0 if self._mirror is None else self._mirror.num_fetched

    def hurry(self, is_urgent: bool) -> None:
        """Whether requests wait for what is read from now on. Raises ExpertMeshError."""
        if not self.has_files:
            self._open()
        if self._mirror is not None:
            self._mirror.limit(None if is_urgent else self._spec.bytes_per_second)

    def lend(self, name: str, ranges: Sequence[Range], *, is_urgent: bool) -> list[bytes] | None:
        """As Lender: to other machines. Any thread."""
        return None if self._lender is None else self._lender.lend(name, ranges, is_urgent=is_urgent)

    def open(self) -> Opened:
        return self._open()[1]

    def read(self, module: ExpertModule) -> tuple[Expert, int]:
        spec, (checkpoint, opened) = self._spec, self._open()
        try:
            return load_module(
                *(checkpoint, module, spec.dtype, spec.device, opened.kernels),
                form=spec.form,
                freed=self._freed,
            )
        except (MemoryError, RuntimeError) as error:
            # torch's own, where a device has no more memory, is the second.
            name = expert_file(module.layer, module.expert)
            path = str(checkpoint.path / name) if module.file is None else module.file.path
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path}: cannot be put into memory: {reason}") from None

    def _open(self) -> tuple[Checkpoint, Opened]:
        if self._opened is None:
            spec = self._spec
            checkpoint = self._checkpoint()
            if spec.fingerprint not in (None, checkpoint.fingerprint):
                path = without_secrets(spec.checkpoint_path)
                raise CheckpointError(f"{path}: not the checkpoint that the coordinator has opened")
            kernels = spec.choose_kernels()
            rows_dtype = kernels.hidden_dtype(spec.dtype)
            opened = Opened(checkpoint.fingerprint, checkpoint.config.d_model, rows_dtype, kernels)
            self._opened = checkpoint, opened
            self._lender = Lender(checkpoint, self._mirror, spec.bytes_per_second)
        return self._opened

    def _checkpoint(self) -> Checkpoint:
        spec = self._spec
        if self.has_files:
            return Checkpoint.open(Path(spec.checkpoint_path))
        if is_url(spec.checkpoint_path):
            self._mirror = mirror_of_url(spec.checkpoint_path)
        else:
            assert spec.offer is not None
            assert self._elsewhere is not None
            self._mirror = open_offer(spec.offer, spec.checkpoint_path, self._elsewhere)
        return Checkpoint.open(self._mirror.path)
