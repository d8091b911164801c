"""ExpertWorker: holds some experts and computes one layer's rows with them. Knows no Ray and no network.

Shapes: R rows received, P (token, expert) pairs, N rows of the reply, D d_model.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from expert_workers.serve_loop import ServeLoop
from expert_workers.wire import (
    Array,
    ExpertCall,
    ExpertReply,
    ReplyForm,
    array_to_tensor,
    dtype_name,
    tensor_to_array,
)
from moe_model.checkpoint import Checkpoint
from moe_model.dispatch import ExpertKey
from moe_model.errors import CheckpointError, ExpertMeshError, ReplyError, WorkerStartError
from moe_model.kernels.base import ExpertBank
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.loading import load_bank


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker must hold and how it computes.

    `num_threads` is for a worker with a process of its own, None: all cores of its machine; `fingerprint`
    None takes any checkpoint at the path; `int8` rounds the experts' matrices to 8 bits.
    """

    rank: int
    checkpoint_path: str
    keys: tuple[ExpertKey, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    num_threads: int | None = None
    fingerprint: str | None = None
    kernels: KernelChoice = "auto"
    int8: bool = False


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says about itself. `num_bytes` counts the tensors of its experts."""

    rank: int
    pid: int
    node_id: str
    device: str
    dtype: str
    fingerprint: str
    keys: tuple[ExpertKey, ...]
    num_bytes: int
    rss_bytes: int
    load_seconds: float
    routed_rows: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Experts in memory: `num_bytes` of tensors, for rows of `width` values of `dtype`, of one checkpoint."""

    bank: ExpertBank
    keys: frozenset[ExpertKey]
    num_bytes: int
    n_layers: int
    n_experts: int
    width: int
    dtype: torch.dtype
    fingerprint: str
    seconds: float


class ExpertWorker:
    """Experts in memory. Calls of several threads are computed one after the other; in `loop` as well."""

    def __init__(self, spec: WorkerSpec, loaded: Loaded) -> None:
        self._spec = spec
        self._loaded = loaded
        self._lock = threading.Lock()
        self._routed_rows = 0
        self.loop = ServeLoop.over(loaded.bank, loaded.n_layers, loaded.n_experts)

    @classmethod
    def load(cls, spec: WorkerSpec) -> Self:
        """Reads the spec's experts, one at a time. Raises WorkerStartError naming rank, file and reason."""
        try:
            return cls(spec, _read(spec))
        except (ExpertMeshError, OSError) as error:
            raise WorkerStartError(f"worker {spec.rank}: {error}") from None

    def compute(self, call: ExpertCall) -> ExpertReply:
        """Runs the call's segments. Raises ReplyError when the call asks for what this worker has not."""
        self._check(call)
        with self._lock:
            started = time.perf_counter()
            with torch.inference_mode():
                y_ND = self._run(call)
            self._routed_rows += call.num_pairs
            seconds = time.perf_counter() - started
        return ExpertReply(call.call_id, call.epoch, tensor_to_array(y_ND), seconds)

    def _run(self, call: ExpertCall) -> Tensor:
        device, bank = self._spec.device, self._loaded.bank
        x_RD = array_to_tensor(_writeable(call.x_RD), call.dtype).to(device, self._loaded.dtype)
        index_P = None if call.row_index_P is None else _to_tensor(call.row_index_P, device)
        if call.form is ReplyForm.PAIRS:
            return bank.run_pairs(call.layer, x_RD, index_P, call.segments).cpu().contiguous()
        assert call.weights_P is not None, "checked"
        weights_P = _to_tensor(call.weights_P, device)
        return bank.run_rows(call.layer, x_RD, index_P, call.segments, weights_P).cpu().contiguous()

    def describe(self) -> WorkerInfo:
        return WorkerInfo(
            rank=self._spec.rank,
            pid=os.getpid(),
            node_id="",
            device=self._spec.device,
            dtype=dtype_name(self._spec.dtype),
            fingerprint=self._loaded.fingerprint,
            keys=tuple(sorted(self._loaded.keys)),
            num_bytes=self._loaded.num_bytes,
            rss_bytes=_rss_bytes(),
            load_seconds=self._loaded.seconds,
            routed_rows=self._routed_rows + (0 if self.loop is None else self.loop.num_pairs),
        )

    def _check(self, call: ExpertCall) -> None:
        name = f"worker {self._spec.rank}"
        for expert, _ in call.segments:
            if (call.layer, expert) not in self._loaded.keys:
                raise ReplyError(f"{name}: does not hold expert {expert} of layer {call.layer}")
        if not call.segments or any(count < 1 for _, count in call.segments):
            raise ReplyError(f"{name}: call {call.call_id} has no segment, or one without rows")
        if call.x_RD.ndim != 2 or call.x_RD.shape[1] != self._loaded.width:
            raise ReplyError(
                f"{name}: rows have shape {call.x_RD.shape}, expected (rows, {self._loaded.width})"
            )
        self._check_rows(name, call)

    def _check_rows(self, name: str, call: ExpertCall) -> None:
        num_rows, index_P = len(call.x_RD), call.row_index_P
        num_pairs = num_rows if index_P is None else len(index_P)
        if num_pairs != call.num_pairs:
            raise ReplyError(f"{name}: {num_pairs} pairs where the segments have {call.num_pairs}")
        if num_pairs > num_rows * len(call.segments):
            raise ReplyError(f"{name}: {num_pairs} pairs of {num_rows} rows and {len(call.segments)} experts")
        if call.form is ReplyForm.SUM and (call.weights_P is None or len(call.weights_P) != num_pairs):
            raise ReplyError(f"{name}: a sum of {num_pairs} pairs without a weight for each")
        if index_P is not None and not (index_P.min() >= 0 and index_P.max() < num_rows):
            raise ReplyError(f"{name}: row index outside the {num_rows} rows")


def _read(spec: WorkerSpec) -> Loaded:
    started = time.perf_counter()
    checkpoint = Checkpoint.open(Path(spec.checkpoint_path))
    if spec.fingerprint not in (None, checkpoint.fingerprint):
        raise CheckpointError(f"{spec.checkpoint_path}: not the checkpoint that the coordinator has opened")
    kernels = choose_kernels(spec.kernels, spec.device, spec.num_threads)
    bank, num_bytes = load_bank(checkpoint, spec.keys, spec.dtype, spec.device, kernels, int8=spec.int8)
    seconds = time.perf_counter() - started
    return Loaded(
        bank,
        frozenset(spec.keys),
        num_bytes,
        checkpoint.config.n_layers,
        checkpoint.config.n_experts,
        checkpoint.config.d_model,
        kernels.hidden_dtype(spec.dtype),
        checkpoint.fingerprint,
        seconds,
    )


def _to_tensor(array: Array, device: str) -> Tensor:
    return torch.from_numpy(_writeable(array)).to(device)


def _writeable(array: Array) -> Array:
    """torch takes no other; what is read from a frame of bytes is not."""
    return array if array.flags.writeable else np.array(array)


def _rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
