"""ExpertWorker: holds some experts and computes one layer's rows with them. Knows no Ray and no network.

Shapes: R rows received, P (token, expert) pairs, D d_model.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from expert_workers.wire import Array, ExpertCall, ExpertReply, array_to_tensor, dtype_name, tensor_to_array
from moe_model.checkpoint import Checkpoint
from moe_model.dispatch import Expert, ExpertKey, compute_segments
from moe_model.errors import CheckpointError, ExpertMeshError, ReplyError, WorkerStartError
from moe_model.families import family_of


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker must hold and how it computes.

    `num_threads` is for a worker with a process of its own, None: all cores of its machine; `fingerprint`
    None takes any checkpoint at the path.
    """

    rank: int
    checkpoint_path: str
    keys: tuple[ExpertKey, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    num_threads: int | None = None
    fingerprint: str | None = None


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
    """Experts in memory: `num_bytes` of tensors, for rows of `width` values, of one checkpoint."""

    experts: Mapping[ExpertKey, Expert]
    num_bytes: int
    width: int
    fingerprint: str
    seconds: float


class ExpertWorker:
    """Experts in memory. One thread at a time may call it."""

    def __init__(self, spec: WorkerSpec, loaded: Loaded) -> None:
        self._spec = spec
        self._loaded = loaded
        self._routed_rows = 0

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
        started = time.perf_counter()
        with torch.inference_mode():
            x_PD = array_to_tensor(_pair_rows(call), call.dtype).to(self._spec.device)
            y_PD = compute_segments(self._loaded.experts, call.layer, x_PD, call.segments).cpu().contiguous()
        self._routed_rows += call.num_pairs
        seconds = time.perf_counter() - started
        return ExpertReply(call.call_id, call.epoch, tensor_to_array(y_PD), call.dtype, seconds)

    def describe(self) -> WorkerInfo:
        return WorkerInfo(
            rank=self._spec.rank,
            pid=os.getpid(),
            node_id="",
            device=self._spec.device,
            dtype=dtype_name(self._spec.dtype),
            fingerprint=self._loaded.fingerprint,
            keys=tuple(sorted(self._loaded.experts)),
            num_bytes=self._loaded.num_bytes,
            rss_bytes=_rss_bytes(),
            load_seconds=self._loaded.seconds,
            routed_rows=self._routed_rows,
        )

    def _check(self, call: ExpertCall) -> None:
        name = f"worker {self._spec.rank}"
        for expert, _ in call.segments:
            if (call.layer, expert) not in self._loaded.experts:
                raise ReplyError(f"{name}: does not hold expert {expert} of layer {call.layer}")
        if not call.segments or any(count < 1 for _, count in call.segments):
            raise ReplyError(f"{name}: call {call.call_id} has no segment, or one without rows")
        expected_dtype = dtype_name(self._spec.dtype)
        if call.dtype != expected_dtype:
            raise ReplyError(f"{name}: rows are {call.dtype}, the experts are {expected_dtype}")
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
        if index_P is not None and not (index_P.min() >= 0 and index_P.max() < num_rows):
            raise ReplyError(f"{name}: row index outside the {num_rows} rows")


def _read(spec: WorkerSpec) -> Loaded:
    started = time.perf_counter()
    checkpoint = Checkpoint.open(Path(spec.checkpoint_path))
    if spec.fingerprint not in (None, checkpoint.fingerprint):
        raise CheckpointError(f"{spec.checkpoint_path}: not the checkpoint that the coordinator has opened")
    family = family_of(checkpoint.config)
    experts: dict[ExpertKey, Expert] = {}
    num_bytes = 0
    for layer, expert in spec.keys:
        tensors = checkpoint.read_expert(layer, expert, dtype=spec.dtype, device=spec.device)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        experts[layer, expert] = family.build_expert(checkpoint.config, tensors)
    seconds = time.perf_counter() - started
    return Loaded(experts, num_bytes, checkpoint.config.d_model, checkpoint.fingerprint, seconds)


def _pair_rows(call: ExpertCall) -> Array:
    """One writeable row per pair, at the start of an allocation: a frame's rows begin anywhere."""
    if call.row_index_P is not None:
        rows: Array = call.x_RD[call.row_index_P]
        return rows
    return np.array(call.x_RD)


def _rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
