"""Settings of tests: small models on machines whose costs are plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from coordinator.config.engine import EngineConfig
from moe_model.config import ModelConfig
from scaling.link import Link
from scaling.machines import Machine, Machines
from scaling.shape import Shape
from scaling.simulation.setting import Ask, CoordinatorPlace, Demand, Setting, WorkerPlace

CONFIG = ModelConfig(
    d_model=32, n_heads=2, n_layers=2, d_ff=64, n_experts=4, top_k=2, vocab_size=64, max_seq_len=256
)


@dataclass(frozen=True)
class Plain:
    """Seconds of each part, whatever the rows; `per_row` of a row of an expert."""

    of_step: float = 0.0
    shared: float = 0.0
    of_head: float = 0.0
    of_experts: float = 0.0
    per_row: float = 0.0
    of_call: float = 0.0
    of_answer: float = 0.0
    of_front: float = 0.0

    def step(self, num_rows: int, num_drawn: int) -> float:
        return self.of_step

    def front(self, num_tokens: int) -> float:
        return self.of_front * num_tokens

    def shared_layer(self, layer: int, num_rows: int, positions: int, read: float) -> float:
        return self.shared

    def head(self, num_rows: int) -> float:
        return self.of_head

    def experts(self, rows_E: Sequence[int]) -> float:
        return self.of_experts + self.per_row * sum(rows_E)

    def call(self, bytes_out: int, bytes_back: int) -> float:
        return self.of_call

    def answer(self, bytes_out: int, bytes_back: int) -> float:
        return self.of_answer

    def forced(self, num_rows: int) -> float:
        return 0.0


def setting(
    costs: Plain, workers: int = 0, link: Link | None = None, coordinators: int = 1, **changes: Any
) -> Setting:
    """Each process on a machine of its own, of 4 cores."""
    num = coordinators + workers
    machines = tuple(
        Machine(f"m{n}", cores=4, memory_gb=64, gbytes_per_s=100, gflops=1000, disk_mb_per_s=1)
        for n in range(num)
    )

    def costs_of(machine: Machine, shape: Shape, form: str, shared_form: str, threads: float) -> Plain:
        return costs

    made = Setting(
        CONFIG,
        Machines(machines, link=link or Link(gbit=1e9)),
        tuple(CoordinatorPlace(f"m{n}", 4) for n in range(coordinators)),
        tuple(WorkerPlace(f"m{n + coordinators}", 4) for n in range(workers)),
        engine=EngineConfig(micro_batches=1, max_gap_ms=None),
        costs_of=costs_of,
    )
    return replace(made, **changes)


def demand(num: int, at_once: int, prompt: int = 8, output: int = 6) -> Demand:
    return Demand([Ask(None, prompt, output)] * num, at_once)
