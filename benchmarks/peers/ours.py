"""Our own systems: the engine in this process or with workers, and the origin of all comparisons."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks import engine as engine_benchmark
from benchmarks.peers.jobs import Load, Probe, Timing
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.build_engine import build_engine
from coordinator.server.compute import dtype_of
from coordinator.server.experts import open_experts
from moe_model.assembled import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import choose_kernels

# What is left of a difference that noise has eaten.
NEXT_TO_NOTHING = 1e-6
Measure = Callable[[Load], tuple[Timing, str]]


def fitted(config: EngineConfig, loads: Sequence[Load]) -> EngineConfig:
    """All prompts of a load are prefilled in one step, and nothing is left from the run before."""
    return replace(
        config,
        max_step_tokens=max(load.batch * load.prompt_tokens for load in loads) + 1,
        max_num_seqs=max(load.batch for load in loads) + 1,
        prefix_caching=False,
    )


@contextmanager
def our_engine(
    checkpoint: Checkpoint, config: EngineConfig, num_workers: int, threads: int
) -> Iterator[Measure]:
    """Workers share the same threads: together they get no more than one process would."""
    each = max(1, threads // num_workers) if num_workers else None
    workers = WorkersConfig(num_workers=num_workers, num_threads=each)
    with open_experts(checkpoint, config, workers) as experts:
        engine = build_engine(checkpoint, config, experts)

        def measure(load: Load) -> tuple[Timing, str]:
            once = engine_benchmark.Load(load.prompt_tokens, load.new_tokens)
            run = engine_benchmark.measure(engine, checkpoint.config.vocab_size, load.batch, once)
            note = "in this process" if not num_workers else "over its transport"
            return Timing(run.prefill, sum(run.steps)), note

        yield measure


class OurModel:
    """What ours computes, with the kernels and in the dtype that are measured."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        kernels = choose_kernels(config.kernels, "cpu", config.num_threads)
        self._model = AssembledModel.from_checkpoint(checkpoint.path, dtype_of(config), kernels=kernels)

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe:
        ids_S = torch.tensor(prompt)
        logits_BSV, _ = self._model.forward(ids_S[None])
        found = self._model.generate(ids_S, new_tokens, temperature=0)
        return Probe(logits_BSV[0, -1].float().tolist(), found[0].tolist()[-new_tokens:])


def origin(checkpoint: Checkpoint, config: EngineConfig) -> Measure:
    """The same arithmetic without a cache, for one sequence: every token computes its whole context again."""

    def seconds(load: Load, new_tokens: int) -> float:
        once = engine_benchmark.Load(load.prompt_tokens, new_tokens)
        return new_tokens / engine_benchmark.measure_origin(checkpoint, dtype_of(config), once)

    def measure(load: Load) -> tuple[Timing, str]:
        assert load.batch == 1, "the origin takes one sequence"
        prefill = seconds(load, 1)
        decode = (
            max(seconds(load, load.new_tokens) - prefill, NEXT_TO_NOTHING) if load.new_tokens > 1 else 0.0
        )
        return Timing(prefill, decode), "no cache"

    return measure
