"""Workers whose processors differ: a server says so when it starts and when one joins, and an instruction set
that all have makes them compute the same."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import shared_kernels_of
from coordinator.server.experts import describe_workers, open_experts
from expert_workers.dispatch.routes import HERE
from expert_workers.worker.expert_source import WorkerSpec
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import ConfigError, WorkerStartError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.kernels.same_bits import KernelKind
from moe_model.names import InstructionChoice, InstructionSet
from tests.native import needs_native

pytestmark = needs_native
TWO = WorkersConfig(num_workers=2, replicas=2, transport="in-process")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture
def has_only(monkeypatch: pytest.MonkeyPatch) -> dict[int, InstructionSet]:
    """By rank: the one instruction set that a worker's processor has; all others have what there is."""
    only: dict[int, InstructionSet] = {}

    def choose(self: WorkerSpec) -> Kernels:
        wanted: InstructionChoice = self.instruction_set
        if self.rank in only and wanted not in ("auto", only[self.rank]):
            raise ConfigError(f"instruction set {wanted}: a machine has only {only[self.rank]}")
        wanted = only.get(self.rank, wanted)
        return choose_kernels(self.kernels, self.device, self.num_threads, wanted)

    monkeypatch.setattr(WorkerSpec, "choose_kernels", choose)
    kind_of = WorkerSpec.kind_of

    def kind(self: WorkerSpec, kernels: Kernels) -> KernelKind:
        found = kind_of(self, kernels)
        return replace(found, available=(only[self.rank],)) if self.rank in only else found

    monkeypatch.setattr(WorkerSpec, "kind_of", kind)
    return only


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "other bits" in record.message]


def test_a_mixed_pool_is_told_at_start_and_when_a_worker_joins(
    checkpoint: Checkpoint, has_only: dict[int, InstructionSet], caplog: pytest.LogCaptureFixture
) -> None:
    has_only[1] = has_only[2] = "generic"
    with open_experts(checkpoint, EngineConfig(num_threads=1), TWO) as experts:
        (line,) = lines(caplog)
        assert line.startswith("worker 1: generic gives experts of float32 other bits than ")
        assert line.endswith(
            "of the coordinator and worker 0: a token may depend on which of them computed "
            "it; --instruction-set=generic makes it the same"
        )
        assert " generic  " in describe_workers(experts.topology())[1]
        caplog.clear()
        experts.scale(3, 60.0)
        (line,) = lines(caplog)
        assert line.startswith("workers 1, 2: generic gives")


@pytest.mark.parametrize(
    ("device", "remedy"),
    [
        ("cpu", "install the coordinator again with a C compiler"),
        ("cuda", "--instruction-set=generic makes it the same"),
    ],
)
def test_a_coordinator_without_experts_must_have_it_too(
    checkpoint: Checkpoint,
    has_only: dict[int, InstructionSet],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: Literal["cpu", "cuda"],
    remedy: str,
) -> None:
    """It is not among those that differ, but computes the shared part with the same option: on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    has_only[1] = "generic"
    kind_of = WorkerSpec.kind_of

    def kind(self: WorkerSpec, kernels: Kernels) -> KernelKind:
        return KernelKind("torch", "torch") if self.rank == HERE else kind_of(self, kernels)

    monkeypatch.setattr(WorkerSpec, "kind_of", kind)
    workers = replace(TWO, on_expert_loss="replica")
    with open_experts(checkpoint, EngineConfig(num_threads=1, device=device), workers):
        (line,) = lines(caplog)
    assert "of worker 0: a token may depend" in line
    assert line.endswith(f"; {remedy}")


def test_one_that_all_have_makes_it_the_same(
    checkpoint: Checkpoint, has_only: dict[int, InstructionSet], caplog: pytest.LogCaptureFixture
) -> None:
    has_only[1] = "generic"
    with open_experts(checkpoint, EngineConfig(num_threads=1, instruction_set="generic"), TWO) as experts:
        assert lines(caplog) == []
        assert [worker.kernels for worker in experts.topology()] == ["generic", "generic"]


def test_on_a_gpu_it_is_for_the_workers_or_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = EngineConfig(num_threads=1, device="cuda", instruction_set="generic")
    assert shared_kernels_of(config).name == "torch"
    with open_experts(checkpoint, config, TWO) as experts:
        assert [worker.kernels for worker in experts.topology()] == ["generic", "generic"]
    message = r"^instruction set generic: torch's kernels compute on cuda, which have none$"
    with pytest.raises(ConfigError, match=message), open_experts(checkpoint, config, WorkersConfig()):
        pass


def test_a_worker_without_it_is_named(checkpoint: Checkpoint, has_only: dict[int, InstructionSet]) -> None:
    has_only[1] = "generic"
    config = EngineConfig(num_threads=1, instruction_set="avx2")
    message = r"^worker 1: instruction set avx2: a machine has only generic$"
    with pytest.raises(WorkerStartError, match=message), open_experts(checkpoint, config, TWO):
        pass
