"""ExpertWorker: holds some modules and computes one layer's rows with them. Knows no Ray and no network.

Shapes: R rows received, P (token, expert) pairs, N rows of the reply, D d_model.
"""

import platform
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from expert_workers.processes import this_process
from expert_workers.wire import (
    Array,
    ExpertCall,
    ExpertReply,
    ReplyForm,
    array_to_tensor,
    tensor_to_array,
    weights_tag,
)
from expert_workers.worker.claims import ClaimRule, Claims
from expert_workers.worker.expert_source import CheckpointSource, ModuleSource, Opened, WorkerSpec
from moe_model.errors import ExpertMeshError, ReplyError, WorkerStartError
from moe_model.kernels.base import ExpertBank
from moe_model.kernels.same_bits import KernelKind
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.machine import available_bytes, give_back_freed_memory, rss_bytes
from moe_model.versions.expert_versions import ExpertModule
from moe_model.versions.load_modules import load_modules

__all__ = ["ExpertWorker", "WorkerInfo", "WorkerSpec"]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says about itself.

    `start_ticks` tells its process from a later one of the same pid; `num_bytes` counts the tensors of its
    modules, `free_bytes` is what its process may still take; `load_seconds` are all that it has ever spent on
    loading. `fingerprint` is empty, and `kernels` None, until it has opened a checkpoint. The process around
    it fills in `node_id` and `host`, and where it fetches the checkpoint from other machines, `has_files` and
    `num_fetched`, the bytes that it has fetched. `certificate_end` is its transport's.
    """

    rank: int
    pid: int
    start_ticks: int
    node_id: str
    host: str
    device: str
    dtype: str
    fingerprint: str
    keys: tuple[ExpertKey, ...]
    num_bytes: int
    rss_bytes: int
    free_bytes: int
    load_seconds: float
    routed_rows: int
    epoch: int
    hostname: str = ""
    kernels: KernelKind | None = None
    has_files: bool = True
    num_fetched: int = 0
    certificate_end: float | None = None


@dataclass(frozen=True, slots=True)
class _Module:
    """A module in memory, whose tensors have `num_bytes`; the bank has what computes it."""

    module: ExpertModule
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Held:
    """All that a worker holds at one time. It never changes: a change makes another one."""

    opened: Opened
    bank: ExpertBank
    modules: Mapping[ExpertKey, _Module]


class CallLoop(Protocol):
    """Answers calls in a worker's place, with the same modules, for the same clients. It begins empty."""

    def exchange(self, layer: int, bank: ExpertBank) -> None:
        """From now on a layer's modules are the bank's. One thread at a time."""

    def answer(self, epochs: tuple[int, ...]) -> None:
        """From now on calls of these epochs are answered, and no others. One thread at a time."""

    @property
    def num_pairs(self) -> int:
        """(row, expert) pairs that were computed in it."""


class ExpertWorker:
    """Modules in memory. Calls of several threads are computed one after the other; in each loop as well.

    Any thread may call anything. What is computed at the time of an exchange is computed with what there was.
    """

    def __init__(
        self, spec: WorkerSpec, source: ModuleSource | None = None, rule: ClaimRule | None = None
    ) -> None:
        """Holds nothing and reads nothing. `source` None: the spec's checkpoint; `rule` None: one client."""
        self.spec = spec
        self._name = f"worker {spec.rank}"
        self._source = source or CheckpointSource(spec)
        self._held: _Held | None = None
        self._claims = Claims(self._name, rule)
        self._routed_rows = 0
        self._load_seconds = 0.0
        self._loops: list[CallLoop] = []
        # Taken in this order: by the thread that reads modules, that puts together what is held, that changes
        # which clients are answered, that computes.
        self._loading, self._changing = threading.Lock(), threading.Lock()
        self._claiming, self._lock = threading.Lock(), threading.Lock()

    def attach(self, loop: CallLoop) -> None:
        """From now on the loop answers as this worker does."""
        with self._changing, self._claiming:
            self._loops.append(loop)
            loop.answer(self._claims.epochs)
            held = self._held
            if held is not None:
                for layer in sorted({layer for layer, _ in held.modules}):
                    loop.exchange(layer, held.bank)

    def load(self, modules: Sequence[ExpertModule]) -> None:
        """Reads those that it does not hold, then holds all of them at once, or none.

        Rows are computed meanwhile. Raises WorkerStartError naming worker, file and reason.
        """
        with self._loading:
            started = time.perf_counter()
            try:
                opened = self._source.open()
                missing = self._missing(modules)
                read = list(zip(missing, load_modules(self._source.read, missing), strict=True))
            except (ExpertMeshError, OSError) as error:
                raise WorkerStartError(f"{self._name}: {error}") from None
            self._exchange(
                opened,
                {module.key: _Module(module, num_bytes) for module, (_, num_bytes) in read},
                {module.key: expert for module, (expert, _) in read},
            )
            del read
            give_back_freed_memory()
            self._load_seconds += time.perf_counter() - started

    def unload(self, keys: Iterable[ExpertKey]) -> None:
        """Forgets modules, those that it does not hold too. A call that is being computed ends first."""
        held = self._held
        if held is not None:
            self._exchange(held.opened, {}, {}, old=frozenset(keys))

    def claim(self, client: str, epoch: int, *, by_force: bool = False, is_linked: bool = True) -> None:
        """From now on answers the client's calls of this epoch, as the rule of claims says. A call that is
        being computed ends first. Raises FencedError."""
        with self._claiming:
            with self._lock:
                self._claims.claim(client, epoch, by_force=by_force, is_linked=is_linked)
            for loop in self._loops:
                loop.answer(self._claims.epochs)

    def heard(self, client: str) -> None:
        """A client lives. Raises FencedError where the worker is another client's."""
        self._claims.heard(client)

    def compute(self, call: ExpertCall) -> ExpertReply:
        """Runs the call's segments. Raises ReplyError when the call asks for what this worker has not,
        FencedError when its epoch is over."""
        with self._lock:
            held, tag = self._checked(call)
            started = time.perf_counter()
            with torch.inference_mode():
                y_ND = self._run(held, call)
            self._routed_rows += call.num_pairs
            seconds = time.perf_counter() - started
        return ExpertReply(call.call_id, call.epoch, call.layer, tag, tensor_to_array(y_ND), seconds)

    def canary(self, keys: Iterable[ExpertKey]) -> dict[ExpertKey, Array]:
        """What each module says to one fixed row: [D], float32, the same bits as long as its weights are.

        Rows are computed between the modules. Raises ReplyError for one that it does not hold.
        """
        return {key: self._canary(key) for key in keys}

    def describe(self) -> WorkerInfo:
        held, process = self._held, this_process()
        return WorkerInfo(
            rank=self.spec.rank,
            pid=process.pid,
            start_ticks=process.started,
            node_id="",
            host="",
            device=self.spec.device,
            dtype=self.spec.precision,
            fingerprint="" if held is None else held.opened.fingerprint,
            keys=() if held is None else tuple(sorted(held.modules)),
            num_bytes=0 if held is None else sum(each.num_bytes for each in held.modules.values()),
            rss_bytes=rss_bytes(),
            free_bytes=available_bytes(),
            load_seconds=self._load_seconds,
            routed_rows=self._routed_rows + sum(loop.num_pairs for loop in self._loops),
            epoch=self._claims.newest,
            hostname=platform.node(),
            kernels=None if held is None else self.spec.kind_of(held.opened.kernels),
        )

    def _missing(self, modules: Sequence[ExpertModule]) -> list[ExpertModule]:
        held = {} if self._held is None else self._held.modules
        missing: dict[ExpertKey, ExpertModule] = {}
        for module in modules:
            same = held[module.key].module if module.key in held else missing.setdefault(module.key, module)
            if same != module:
                raise WorkerStartError(f"holds another module in slot {module.slot} of layer {module.layer}")
        return list(missing.values())

    def _exchange(
        self,
        opened: Opened,
        new: Mapping[ExpertKey, _Module],
        experts: Mapping[ExpertKey, Expert],
        old: Collection[ExpertKey] = (),
    ) -> None:
        with self._changing:
            held = self._held
            before = {} if held is None else held.modules
            modules = {key: module for key, module in before.items() if key not in old}
            modules.update(new)
            layers = {layer for layer, _ in [*new, *old]}
            if held is None or not before:
                bank = opened.kernels.bank(dict(sorted(experts.items())))
            else:
                bank = _exchanged(held.bank, layers, sorted(modules), experts)
            with self._lock:
                self._held = _Held(opened, bank, modules)
            # Loops point into the weights of `held` until each layer has been exchanged.
            for loop in self._loops:
                for layer in layers:
                    loop.exchange(layer, bank)

    def _canary(self, key: ExpertKey) -> Array:
        layer, slot = key
        with self._lock, torch.inference_mode():
            held = self._holding(layer, ((slot, 1),))
            x_1D = _canary_row(held.opened.width).to(self.spec.device, held.opened.rows_dtype)
            y_1D = held.bank.run_pairs(layer, x_1D, None, ((slot, 1),))
        y_D: Array = tensor_to_array(y_1D.cpu().contiguous())[0]
        return y_D

    def _run(self, held: _Held, call: ExpertCall) -> Tensor:
        device = self.spec.device
        x_RD = array_to_tensor(_writeable(call.x_RD), call.dtype).to(device, held.opened.rows_dtype)
        index_P = None if call.row_index_P is None else _to_tensor(call.row_index_P, device)
        if call.form is ReplyForm.PAIRS:
            return held.bank.run_pairs(call.layer, x_RD, index_P, call.segments).cpu().contiguous()
        assert call.weights_P is not None, "checked"
        weights_P = _to_tensor(call.weights_P, device)
        return held.bank.run_rows(call.layer, x_RD, index_P, call.segments, weights_P).cpu().contiguous()

    def _checked(self, call: ExpertCall) -> tuple[_Held, int]:
        """What the call is computed with, and the tag of that."""
        name = self._name
        self._claims.check(call.epoch)
        held = self._holding(call.layer, call.segments)
        if not call.segments or any(count < 1 for _, count in call.segments):
            raise ReplyError(f"{name}: call {call.call_id} has no segment, or one without rows")
        width = held.opened.width
        if call.x_RD.ndim != 2 or call.x_RD.shape[1] != width:
            raise ReplyError(f"{name}: rows have shape {call.x_RD.shape}, expected (rows, {width})")
        self._check_rows(call)
        modules = held.modules
        return held, weights_tag(
            [(modules[call.layer, slot].module.slot, count) for slot, count in call.segments]
        )

    def _holding(self, layer: int, segments: Iterable[tuple[int, int]]) -> _Held:
        held = self._held
        for slot, _ in segments:
            if held is None or (layer, slot) not in held.modules:
                raise ReplyError(f"{self._name}: does not hold module {slot} of layer {layer}")
        if held is None:
            raise ReplyError(f"{self._name}: does not hold anything")
        return held

    def _check_rows(self, call: ExpertCall) -> None:
        name, num_rows, index_P = self._name, len(call.x_RD), call.row_index_P
        num_pairs = num_rows if index_P is None else len(index_P)
        if num_pairs != call.num_pairs:
            raise ReplyError(f"{name}: {num_pairs} pairs where the segments have {call.num_pairs}")
        if num_pairs > num_rows * len(call.segments):
            raise ReplyError(f"{name}: {num_pairs} pairs of {num_rows} rows and {len(call.segments)} experts")
        if call.form is ReplyForm.SUM and (call.weights_P is None or len(call.weights_P) != num_pairs):
            raise ReplyError(f"{name}: a sum of {num_pairs} pairs without a weight for each")
        if index_P is not None and not (index_P.min() >= 0 and index_P.max() < num_rows):
            raise ReplyError(f"{name}: row index outside the {num_rows} rows")


def _exchanged(
    bank: ExpertBank,
    layers: Iterable[int],
    keys: Sequence[ExpertKey],
    new: Mapping[ExpertKey, Expert],
) -> ExpertBank:
    """A bank that has just these keys in these layers."""
    for layer in layers:
        slots = [slot for each, slot in keys if each == layer]
        added = {slot: expert for (each, slot), expert in new.items() if each == layer}
        bank = bank.with_layer(layer, slots, added)
    return bank


def _canary_row(width: int) -> Tensor:
    """Values between -1 and 1, from integers: the same bits on every machine."""
    scattered_D = np.arange(1, width + 1, dtype=np.uint32) * np.uint32(2_654_435_761)
    return torch.from_numpy(((scattered_D >> 16).astype(np.float32) / 2**15 - 1)[None, :])


def _to_tensor(array: Array, device: str) -> Tensor:
    return torch.from_numpy(_writeable(array)).to(device)


def _writeable(array: Array) -> Array:
    """torch takes no other; what is read from a frame of bytes is not."""
    return array if array.flags.writeable else np.array(array)
