"""A model's experts for a server: in this process or on workers, and the same kind of thing to the rest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Protocol

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import device_of, dtype_of, kernels_of
from coordinator.server.phases import UNTOLD, Phases
from expert_workers.cluster.place import OwnRay
from expert_workers.observers import ExpertObserver
from expert_workers.status import Workers, WorkerStatus
from moe_model.checkpoint.reader import Checkpoint
from moe_model.halt import Halt
from moe_model.loading import check_form, load_local_experts
from moe_model.versions.running_experts import RunningExperts


class ServedExperts(RunningExperts, Workers, Protocol):
    """What the engine computes with, and what operators see and change: LocalExperts or RemoteExperts."""


@contextmanager
def open_experts(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    workers: WorkersConfig,
    observers: Sequence[ExpertObserver] = (),
    over: Callable[[str], None] | None = None,
    phases: Phases = UNTOLD,
    halt: Halt | None = None,
    own_ray: OwnRay | None = None,
) -> Iterator[ServedExperts]:
    """The experts, in this process or in workers that end with the block; `over` is told why these cannot be
    looked after any more, `own_ray` says where a Ray is that another process has started for this one.
    Raises ConfigError for a form or slices that the experts cannot be in, HaltedError when `halt` is set
    before they are ready."""
    halt = halt or Halt()
    halt.check()
    check_form(checkpoint, engine.expert_dtype, engine.expert_slices)
    if not workers.has_workers:
        phases("experts")
        yield load_local_experts(
            *(checkpoint, dtype_of(engine), device_of(engine), kernels_of(engine)),
            form=engine.expert_dtype,
            num_slices=engine.expert_slices,
            halt=halt,
            on_bytes=phases.progress,
        )
        return
    # With it comes Ray, which is large.
    opener = import_module("coordinator.server.open_workers")
    opened: AbstractContextManager[ServedExperts] = opener.open_workers(
        checkpoint, engine, workers, observers, over, phases, halt, own_ray
    )
    with opened as experts:
        yield experts


def describe_workers(workers: Sequence[WorkerStatus]) -> list[str]:
    """One line per worker: its process, what it holds, what it has done."""
    return [
        f"worker {worker.rank}  {worker.state}  pid {worker.pid}  {worker.device} {worker.kernels}  "
        f"{worker.num_bytes / 1e6:.1f} MB  {worker.routed_rows} rows  "
        + "  ".join(f"layer {layer}: {','.join(map(str, ids))}" for layer, ids in worker.experts.items())
        for worker in workers
    ] or ["all experts run in the coordinator's process"]
