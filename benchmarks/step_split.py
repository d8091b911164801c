"""Where the time of a decode step goes: an engine whose parts are timed, put together as the server's is.

Timing costs some microseconds a part, so rates are measured without it; shares are what counts here.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from coordinator.config.engine import EngineConfig
from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.attention.torch_attention import AttentionPlan
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.sampling.sampler import Drawn, Sampler
from coordinator.server.cache_budget import cache_sizes
from coordinator.server.compute import dtype_of
from expert_workers.dispatch.pool_stats import DispatchRecord
from expert_workers.transports.base import FailureReason
from moe_model.checkpoint.reader import Checkpoint
from moe_model.families import family_of
from moe_model.kernels.choice import choose_kernels, step_program
from moe_model.kernels.step_program import ProgramPart, StepProgram
from moe_model.layers.attention import Attend, AttentionForm, Kept
from moe_model.layers.dense import Gate, SharedModel
from moe_model.layers.experts import ExpertBackend
from moe_model.layers.router import Routing
from moe_model.model import Model, Part
from moe_model.versions.running_experts import RunningExperts

P = ParamSpec("P")
T = TypeVar("T")

PARTS = (
    "attention",
    "routing",
    "serialisation",
    "wire",
    "experts",
    "shared",
    "combine",
    "head",
    "sampling",
    "scheduler",
)
# What neither the kernels nor the way to workers take.
OUTSIDE = ("serialisation", "combine", "sampling", "scheduler")


class Split:
    """Seconds by part since `reset`. Also what the pool tells of its dispatches."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        self.seconds = dict.fromkeys((*PARTS, "step", "run", "forward", "waiting"), 0.0)

    def timed(self, part: str, work: Callable[P, T]) -> Callable[P, T]:
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.timing(part):
                return work(*args, **kwargs)

        return run

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def dispatched(self, records: Sequence[DispatchRecord]) -> None:
        """As ExpertObserver. Of the workers, the slowest is what the step waits for."""
        for record in records:
            self.seconds["experts"] += max(record.compute_seconds.values(), default=0.0)
            self.seconds["combine"] += record.combine_seconds

    def lost(self, rank: int, reason: FailureReason) -> None:
        raise AssertionError(f"worker {rank} was lost in a benchmark: {reason}")

    def restarted(self, rank: int, reason: FailureReason) -> None:
        """It was lost before."""

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        """Nothing waits for it."""

    def shares(self) -> dict[str, float]:
        """Seconds per part; what is left of a step are batches, bookkeeping and outputs: the scheduler's."""
        s = dict(self.seconds)
        if s["waiting"]:
            # What workers compute while other rows are still being sent, the step does not wait for.
            out = s["waiting"] - s["combine"]
            s["experts"] = min(s["experts"], out)
            s["wire"] = out - s["experts"]
        known = sum(s[part] for part in PARTS if part != "scheduler")
        s["scheduler"] = max(0.0, s["step"] - known)
        return {part: s[part] for part in PARTS}


@dataclass(frozen=True, slots=True)
class _TimedExperts:
    """Local experts are computed where they are begun; those of workers are sent there, and waited for."""

    inner: ExpertBackend
    split: Split
    is_remote: bool

    @property
    def in_c(self) -> object | None:
        return self.inner.in_c

    def take_over(self, layer: int, x_TD: Tensor, routing: Routing) -> Any:
        return self.inner.take_over(layer, x_TD, routing)

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self.finish(self.begin(layer, x_TD, routing))

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Any:
        with self.split.timing("serialisation" if self.is_remote else "experts"):
            return self.inner.begin(layer, x_TD, routing)

    def finish(self, begun: Any) -> Tensor:
        if not self.is_remote:
            return self.inner.finish(begun)
        with self.split.timing("waiting"):
            return self.inner.finish(begun)


class _TimedModel(Model):
    """Its program is timed in C, instruction by instruction; without one, its parts are timed."""

    def __init__(
        self,
        model_config: Any,
        shared: SharedModel,
        experts: ExpertBackend,
        program: StepProgram | None,
        split: Split,
        *,
        is_remote: bool,
    ) -> None:
        super().__init__(model_config, shared, experts, program)
        self._split, self._is_remote = split, is_remote
        if program is not None:
            program.times(go_on=True)

    def forward_parts(self, parts: Sequence[Part]) -> Tensor:
        h_TD = super().forward_parts(parts)
        if self.program is not None:
            self._add(self.program.times(go_on=True))
        return h_TD

    def _add(self, times: Mapping[ProgramPart, float]) -> None:
        """Experts of workers are begun, and their answers waited for."""
        experts = "serialisation" if self._is_remote else "experts"
        names: dict[ProgramPart, str] = {"experts": experts, "for all": "shared", "answers": "waiting"}
        for part, seconds in times.items():
            if part != "answers" or self._is_remote:
                self._split.seconds[names.get(part, part)] += seconds

    def logits(self, h_RD: Tensor) -> Tensor:
        with self._split.timing("head"):
            return super().logits(h_RD)


class _TimedSampler(Sampler):
    def __init__(self, vocab_size: int, split: Split) -> None:
        super().__init__(vocab_size)
        self._split = split

    def draw(self, logits_RV: Tensor, rows: Any) -> Drawn:
        with self._split.timing("sampling"):
            return super().draw(logits_RV, rows)


@dataclass(frozen=True, slots=True)
class _TimedAttention:
    """Projections before and after; attention itself is the plan's."""

    inner: Any
    split: Split

    @property
    def form(self) -> AttentionForm:
        form: AttentionForm = self.inner.form
        return form

    def project(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Kept]:
        with self.split.timing("attention"):
            projected: tuple[Tensor, Kept] = self.inner.project(x_TD, positions_T)
        return projected

    def merge(self, o_THd: Tensor, residual_TD: Tensor) -> Tensor:
        with self.split.timing("attention"):
            merged_TD: Tensor = self.inner.merge(o_THd, residual_TD)
        return merged_TD


def timed_engine(
    checkpoint: Checkpoint, config: EngineConfig, experts: RunningExperts, split: Split, *, is_remote: bool
) -> Engine:
    """An engine like build_engine's, without overlap: what runs at once has no times of its own."""
    kernels = choose_kernels(config.kernels, "cpu", config.num_threads)
    sizes = cache_sizes(checkpoint.config, config)
    spec = family_of(checkpoint.config).cache_spec(checkpoint.config)
    cache = KVCache(spec, sizes, dtype_of(config), layout=kernels.cache_layout)
    tensors = checkpoint.read_shared(dtype_of(config), "cpu")
    family, form = family_of(checkpoint.config), config.shared_dtype
    shared = family.build_shared(checkpoint.config, tensors, kernels, form=form)
    program = step_program(kernels, shared)
    timed = _timed_shared(shared, split)
    timed_experts = _TimedExperts(experts, split, is_remote)
    model = _TimedModel(checkpoint.config, timed, timed_experts, program, split, is_remote=is_remote)
    plan = attention_plan(kernels) if program is not None else _timed_plan(attention_plan(kernels), split)
    sampler = _TimedSampler(checkpoint.config.vocab_size, split)
    scheduler = Scheduler(
        sizes,
        config.max_num_seqs,
        config.max_step_tokens,
        prefix_caching=config.prefix_caching,
    )
    runner = ModelRunner(model, cache, plan, sampler=sampler)
    return Engine(scheduler, runner, checkpoint.config.max_seq_len, experts)


def _timed_shared(shared: SharedModel, split: Split) -> SharedModel:
    blocks = [
        replace(
            block,
            attention=_TimedAttention(block.attention, split),
            ffn_norm=None if block.ffn_norm is None else split.timed("routing", block.ffn_norm),
            gate=None if block.gate is None else _timed_gate(block.gate, split),
            for_all=None if block.for_all is None else split.timed("shared", block.for_all),
        )
        for block in shared.blocks
    ]
    return replace(shared, blocks=blocks)


def _timed_gate(gate: Gate, split: Split) -> Gate:
    return replace(gate, router=split.timed("routing", gate.router))


def _timed_plan(plan: AttentionPlan, split: Split) -> AttentionPlan:
    def timed(cache: KVCache, batch: Batch) -> Attend:
        return split.timed("attention", plan(cache, batch))

    return timed
