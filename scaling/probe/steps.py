"""Whole steps of an engine in this process, or with workers, and what they are made of.

Shapes: E experts of a layer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any, Literal, cast

from msgspec import Struct

from benchmarks.engine import Load, step, submit_all
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from expert_workers.dispatch.pool_stats import DispatchRecord
from expert_workers.transports.base import FailureReason
from moe_model.checkpoint.reader import Checkpoint
from moe_model.layers.dispatch import sort_by_expert
from moe_model.layers.router import Routing
from moe_model.versions.running_experts import RunningExperts

# Other programs may have the cores for a while; that is no reason to give a worker up.
_CALL_TIMEOUT = 60.0

LayerRows = tuple[tuple[int, ...], ...]


class StepWork(Struct, frozen=True):
    """What a step has to do. `positions`: that all its rows together see in a layer. `rows_LE`: rows of each
    expert of each layer with experts."""

    num_rows: int
    num_drawn: int
    positions: int
    rows_LE: LayerRows

    @property
    def read(self) -> float:
        """Positions that come from memory: of each sequence those of its mean row."""
        return self.positions * self.num_drawn / self.num_rows


class Measured(Struct, frozen=True):
    """Steps of one kind of one model: what each did, and the seconds that one takes. Bytes are those that go
    to all workers together, and come back, of one layer of a mean step."""

    model: str
    phase: Literal["prefill", "decode"]
    batch: int
    workers: int
    works: tuple[StepWork, ...]
    seconds: float
    bytes_out: float = 0.0
    bytes_back: float = 0.0


class _Bytes:
    """An ExpertObserver of workers that none is lost of: how many bytes went each way, layer by layer."""

    def __init__(self) -> None:
        self.out: list[int] = []
        self.back: list[int] = []

    def dispatched(self, records: Sequence[DispatchRecord]) -> None:
        self.out += [record.bytes_sent for record in records]
        self.back += [record.bytes_received for record in records]

    def lost(self, rank: int, reason: FailureReason) -> None:
        raise RuntimeError(f"worker {rank} was lost while steps were measured: {reason}")

    def restarted(self, rank: int, reason: FailureReason) -> None:
        """It was lost before."""

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        """Nothing waits for it."""


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
        kv_cache_bytes=256 << 20,
        prefix_caching=False,
        max_gap_ms=None,
        micro_batches=1,
    )
    ours = WorkersConfig(
        num_workers=workers,
        ray_namespace=f"probe-{workers}",
        rebalance_interval=0,
        call_timeout=_CALL_TIMEOUT,
    )
    seen = _Bytes()
    with open_experts(checkpoint, config, ours, [seen]) as experts:
        yield StepBench(checkpoint, config, experts, workers, seen)


class StepBench:
    """Runs loads on one engine; what each step has to do is found out with a second one, untimed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        experts: RunningExperts,
        workers: int,
        seen: _Bytes,
    ) -> None:
        self._checkpoint, self._workers, self._seen = checkpoint, workers, seen
        self._engine = build_engine(checkpoint, config, experts)
        self._watched = _Watched(experts, checkpoint.config.n_experts)
        self._twin = build_engine(checkpoint, config, cast(RunningExperts, self._watched))

    def measure(self, name: str, batch: int, load: Load, repeats: int) -> list[Measured]:
        """The step of all prompts, and the steps after it: as Measured each, of medians. The first run warms
        up."""
        works = self._works(batch, load)
        self._run(self._engine, batch, load)
        runs, ways = [], []
        for _ in range(repeats):
            self._seen.out.clear()
            self._seen.back.clear()
            runs.append(self._run(self._engine, batch, load))
            ways = [_by_step(each, len(works)) for each in (self._seen.out, self._seen.back)]
        prefill = median(run[0] for run in runs)
        decode = median(seconds for run in runs for seconds in run[1:])
        first, rest = ([way[0] for way in ways], [sum(way[1:]) / len(way[1:]) for way in ways])
        return [
            Measured(name, "prefill", batch, self._workers, works[:1], prefill, *first),
            Measured(name, "decode", batch, self._workers, works[1:], decode, *rest),
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


def _by_step(of_layers: Sequence[int], num_steps: int) -> list[float]:
    """Of each step, the mean of its layers; nothing where nothing is sent."""
    if not of_layers:
        return [0.0] * num_steps
    layers = len(of_layers) // num_steps
    return [sum(of_layers[i * layers : (i + 1) * layers]) / layers for i in range(num_steps)]


def _work(batch: int, load: Load, index: int, rows_LE: LayerRows) -> StepWork:
    prompt = load.prompt_tokens
    if index == 0:
        return StepWork(batch * prompt, batch, batch * prompt * (prompt + 1) // 2, rows_LE)
    return StepWork(batch, batch, batch * (prompt + index), rows_LE)


def loads(*, quick: bool) -> Sequence[tuple[int, Load]]:
    """Numbers of sequences, with what each has: one of them with long prompts, for attention."""
    short = Load(prompt_tokens=16, new_tokens=17)
    if quick:
        return (1, short), (8, short), (32, short), (4, Load(128, 9))
    return (1, short), (4, short), (8, short), (16, short), (32, short), (4, Load(224, 13))
