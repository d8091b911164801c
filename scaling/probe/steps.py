"""Whole steps of an engine in this process, or with workers, and what they are made of.

Shapes: E experts of a layer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, cast

from msgspec import Struct

from benchmarks.engine import Load, step, submit_all
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from moe_model.checkpoint.reader import Checkpoint
from moe_model.layers.dispatch import sort_by_expert
from moe_model.layers.router import Routing
from moe_model.versions.running_experts import RunningExperts
from scaling.probe.timing import quantile

LayerRows = tuple[tuple[int, ...], ...]


class StepWork(Struct, frozen=True):
    """What a step has to do. `positions`: that all its rows together see in a layer. `rows_LE`: rows of each
    expert of each layer with experts."""

    num_rows: int
    num_drawn: int
    positions: int
    rows_LE: LayerRows


class Measured(Struct, frozen=True):
    """Steps of one kind of one model: what each did, and the seconds that one takes."""

    model: str
    phase: Literal["prefill", "decode"]
    batch: int
    workers: int
    works: tuple[StepWork, ...]
    seconds: float


class _Watched:
    """Experts in this process whose routings are noted; Python sees each layer, so it is slower."""

    def __init__(self, inner: RunningExperts, n_experts: int) -> None:
        self._inner, self._n_experts = inner, n_experts
        self.rows_LE: list[tuple[int, ...]] = []

    in_c = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def begin(self, layer: int, x_TD: Any, routing: Routing) -> Any:
        _, counts_E = sort_by_expert(routing.expert_ids_TK.flatten().numpy(), self._n_experts)
        self.rows_LE.append(tuple(counts_E[: self._n_experts]))
        return self._inner.begin(layer, x_TD, routing)


@contextmanager
def opened(
    checkpoint: Checkpoint, workers: int = 0, num_threads: int | None = None, max_tokens: int = 1024
) -> Iterator["StepBench"]:
    """An engine as `expertmesh serve` has it, prefixes not kept; its workers end with the block."""
    config = EngineConfig(
        dtype="bfloat16",
        num_threads=num_threads,
        max_num_seqs=64,
        max_step_tokens=max_tokens,
        prefix_caching=False,
        max_gap_ms=None,
        micro_batches=1,
    )
    ours = WorkersConfig(num_workers=workers, ray_namespace=f"probe-{workers}", rebalance_interval=0)
    with open_experts(checkpoint, config, ours) as experts:
        yield StepBench(checkpoint, config, experts, workers)


class StepBench:
    """Runs loads on one engine; what each step has to do is found out with a second one, untimed."""

    def __init__(
        self, checkpoint: Checkpoint, config: EngineConfig, experts: RunningExperts, workers: int
    ) -> None:
        self._checkpoint, self._workers = checkpoint, workers
        self._engine = build_engine(checkpoint, config, experts)
        self._watched = _Watched(experts, checkpoint.config.n_experts)
        small = replace(config, kv_cache_bytes=256 << 20)
        self._twin = build_engine(checkpoint, small, cast(RunningExperts, self._watched))

    def measure(self, name: str, batch: int, load: Load, repeats: int) -> list[Measured]:
        """The step of all prompts, and the steps after it: as Measured each. The first run warms up."""
        works = self._works(batch, load)
        self._run(self._engine, batch, load)
        runs = [self._run(self._engine, batch, load) for _ in range(repeats)]
        prefill = quantile([run[0] for run in runs])
        decode = quantile([seconds for run in runs for seconds in run[1:]])
        return [
            Measured(name, "prefill", batch, self._workers, works[:1], prefill),
            Measured(name, "decode", batch, self._workers, works[1:], decode),
        ]

    def _run(self, engine: Engine, batch: int, load: Load) -> list[float]:
        """Seconds of each step."""
        submit_all(engine, self._checkpoint.config.vocab_size, batch, load)
        marks = [time.perf_counter()]
        while engine.has_work:
            step(engine)
            marks.append(time.perf_counter())
        return [after - before for before, after in pairwise(marks)]

    def _works(self, batch: int, load: Load) -> tuple[StepWork, ...]:
        self._watched.rows_LE.clear()
        number = len(self._run(self._twin, batch, load))
        layers = len(self._checkpoint.config.moe_layers)
        found = self._watched.rows_LE
        assert len(found) == number * layers, "all prompts are one step"
        return tuple(
            _work(batch, load, index, tuple(found[index * layers : (index + 1) * layers]))
            for index in range(number)
        )


def _work(batch: int, load: Load, index: int, rows_LE: LayerRows) -> StepWork:
    prompt = load.prompt_tokens
    if index == 0:
        return StepWork(batch * prompt, batch, batch * prompt * (prompt + 1) // 2, rows_LE)
    return StepWork(batch, batch, batch * (prompt + index), rows_LE)


def batches(quick: bool) -> Sequence[tuple[int, Load]]:
    """Numbers of sequences, with what each has: one of them with long prompts, for attention."""
    short = Load(prompt_tokens=16, new_tokens=17)
    if quick:
        return (1, short), (8, short), (32, short), (4, Load(192, 9))
    return (1, short), (4, short), (8, short), (16, short), (32, short), (4, Load(224, 13))
