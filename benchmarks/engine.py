"""Prefill and decode rates of the engine, alone and with expert workers, and where a step's time goes.

Prints the physics, tables for people, and one JSON line for machines. The origin is the same arithmetic
without a cache: every token computes its whole context again, as the model's authors' own `generate` does.
Rounds take everything in turns, so that a slow minute of the machine falls on all of it.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch

from benchmarks import arguments
from benchmarks.checkpoints import opened
from benchmarks.physics import Machine, decode_floor_seconds, measure_machine
from benchmarks.report import Report, reporting
from benchmarks.step_split import OUTSIDE, PARTS, Split, timed_engine
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Request, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.compute import dtype_of
from coordinator.server.experts import open_experts
from coordinator.server.process import configure_process
from expertmesh.commands.options import options_of
from moe_model.assembled import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Load:
    """What every sequence of a run has."""

    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Medians over the rounds. `prefill` and `decode` are tokens per second of all sequences together; `step`
    is the median decode step in seconds, `of_floor` how many times the roofline it takes. `decode_rounds`:
    of each round."""

    workers: int
    batch: int
    prefill: float
    decode: float
    step: float
    of_floor: float
    decode_rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds: until every sequence has its first token, of each decode step."""

    prefill: float
    steps: list[float]


def submit_all(engine: Engine, vocab_size: int, batch: int, load: Load) -> None:
    """Greedy requests of one length, each with a prompt of its own."""
    rules = StopRules(load.new_tokens, ignore_eos=True)
    for index in range(batch):
        prompt = tuple((37 * index + 11 * i) % (vocab_size - 4) + 4 for i in range(load.prompt_tokens))
        engine.submit(Request(f"bench-{index}", prompt, SamplingParams(temperature=0), rules))


def measure(engine: Engine, vocab_size: int, batch: int, load: Load) -> Run:
    submit_all(engine, vocab_size, batch, load)
    started = time.perf_counter()
    started_ids: set[str] = set()
    while len(started_ids) < batch:
        started_ids |= {output.request_id for output in step(engine)}
    prefill = time.perf_counter() - started
    steps = []
    while engine.has_work:
        started = time.perf_counter()
        step(engine)
        steps.append(time.perf_counter() - started)
    return Run(prefill, steps)


def step(engine: Engine) -> Sequence[Output]:
    """Raises the first error of a step's outputs."""
    outputs = engine.step()
    for output in outputs:
        if output.error is not None:
            raise output.error
    return outputs


def measure_origin(checkpoint: Checkpoint, dtype: torch.dtype, load: Load) -> float:
    """Tokens per second of `AssembledModel.generate`, one sequence."""
    model = AssembledModel.from_checkpoint(checkpoint.path, dtype)
    prompt = torch.arange(4, 4 + load.prompt_tokens) % checkpoint.config.vocab_size
    model.generate(prompt, 2, temperature=0)
    started = time.perf_counter()
    model.generate(prompt, load.new_tokens, temperature=0)
    return load.new_tokens / (time.perf_counter() - started)


def bench_config(config: EngineConfig, largest: int, load: Load) -> EngineConfig:
    """One chunk per batch, so that "prefill" is one step; and nothing that the run before has left."""
    tokens = max(largest * load.prompt_tokens, config.max_step_tokens) + 1
    return replace(config, max_step_tokens=tokens, max_num_seqs=largest + 1, prefix_caching=False)


def measure_rates(
    checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace, load: Load, machine: Machine
) -> list[Rate]:
    """All numbers of workers and all batches in turns; the first round warms up."""
    runs: dict[tuple[int, int], list[Run]] = {}
    with ExitStack() as stack:
        engines = {}
        for workers in args.workers:
            made = engine_config(config, workers)
            experts = stack.enter_context(open_experts(checkpoint, made, _workers_config(args, workers)))
            engines[workers] = build_engine(checkpoint, made, experts)
        for round_ in range(args.repeats + 1):
            print(f"round {round_} of {args.repeats}", flush=True)
            for workers, engine in engines.items():
                for batch in args.batches:
                    run = measure(engine, checkpoint.config.vocab_size, batch, load)
                    if round_:
                        runs.setdefault((workers, batch), []).append(run)
    return [
        _rate(
            workers,
            batch,
            found,
            load,
            decode_floor_seconds(checkpoint.config, dtype_of(config), machine, batch),
        )
        for (workers, batch), found in sorted(runs.items())
    ]


def _rate(workers: int, batch: int, runs: Sequence[Run], load: Load, floor: float) -> Rate:
    decode = tuple(batch * len(run.steps) / sum(run.steps) for run in runs)
    step_seconds = statistics.median(seconds for run in runs for seconds in run.steps)
    return Rate(
        workers,
        batch,
        batch * load.prompt_tokens / statistics.median(run.prefill for run in runs),
        statistics.median(decode),
        step_seconds,
        step_seconds / floor,
        decode,
    )


def worker_shares(rates: Sequence[Rate]) -> list[dict[str, object]]:
    """Of the decode rate in this process, what is left with workers on the same cores: round by round."""
    alone = {rate.batch: rate for rate in rates if rate.workers == 0}
    return [
        {
            "workers": rate.workers,
            "batch": rate.batch,
            "rounds": [
                with_workers / without
                for with_workers, without in zip(
                    rate.decode_rounds, alone[rate.batch].decode_rounds, strict=True
                )
            ],
        }
        for rate in rates
        if rate.workers and rate.batch in alone
    ]


def measure_splits(
    checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace, load: Load
) -> list[dict[str, object]]:
    """Microseconds per decode step by part, the median step's shares; engines one after the other."""
    rows: list[dict[str, object]] = []
    for workers in args.workers:
        split = Split()
        made = engine_config(config, workers)
        with open_experts(checkpoint, made, _workers_config(args, workers), [split]) as experts:
            engine = timed_engine(checkpoint, made, experts, split, is_remote=workers > 0)
            for batch in args.batches:
                measure(engine, checkpoint.config.vocab_size, batch, load)
                parts = _split_steps(engine, split, checkpoint.config.vocab_size, batch, load)
                outside = sum(parts[part] for part in OUTSIDE)
                row = {"workers": workers, "batch": batch, "microseconds": parts}
                rows.append({**row, "outside_microseconds": outside})
    return rows


def _split_steps(engine: Engine, split: Split, vocab_size: int, batch: int, load: Load) -> dict[str, float]:
    submit_all(engine, vocab_size, batch, load)
    step(engine)
    found: list[dict[str, float]] = []
    while engine.has_work:
        split.reset()
        with split.timing("step"):
            step(engine)
        found.append(split.shares())
    return {part: 1e6 * statistics.median(each[part] for each in found) for part in PARTS}


def engine_config(config: EngineConfig, workers: int) -> EngineConfig:
    """Slices are for workers: in one process whole experts take less time."""
    return config if workers else replace(config, expert_slices=1)


def _workers_config(args: argparse.Namespace, workers: int) -> WorkersConfig:
    given = options_of(args, arguments.EngineBenchmark).workers
    replicas = max(1, min(given.replicas, workers))
    return replace(given, num_workers=workers, replicas=replicas, ray_namespace=f"bench-{workers}")


def run(checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace, report: Report) -> None:
    machine = measure_machine(dtype_of(config), num_threads=config.num_threads)
    load = Load(args.prompt_tokens, args.new_tokens)
    config = bench_config(config, max(args.batches), load)
    _print_physics(machine, checkpoint, config, args.batches)
    origin = measure_origin(checkpoint, dtype_of(config), load)
    print(f"origin (no cache), batch 1: {origin:.1f} tokens/s\n")
    rates = measure_rates(checkpoint, config, args, load, machine)
    _print_rates(rates, origin)
    splits = [] if args.no_split else measure_splits(checkpoint, config, args, load)
    _print_splits(splits)
    report.finish(
        {
            "dtype": config.dtype,
            "machine": asdict(machine),
            "load": asdict(load),
            "origin_tokens_per_second": origin,
            "rates": [asdict(rate) for rate in rates],
            "worker_shares": worker_shares(rates),
            "splits": splits,
        }
    )


def _print_physics(
    machine: Machine, checkpoint: Checkpoint, config: EngineConfig, batches: Sequence[int]
) -> None:
    print(
        f"{machine.num_threads} threads read {machine.read_bytes_per_second / 1e9:.1f} GB/s and multiply "
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s; weights in {config.dtype}"
    )
    for batch in batches:
        floor = decode_floor_seconds(checkpoint.config, dtype_of(config), machine, batch)
        print(f"roofline, batch {batch}: {1e3 * floor:.2f} ms a step, {batch / floor:.0f} tokens/s")


def _print_rates(rates: Sequence[Rate], origin: float) -> None:
    print(f"\n{'workers':>8} {'batch':>6} {'prefill tok/s':>14} {'decode tok/s':>13} {'x origin':>9}", end="")
    print(f" {'step ms':>8} {'x roofline':>11}")
    for rate in rates:
        print(
            f"{rate.workers:>8} {rate.batch:>6} {rate.prefill:>14.0f} {rate.decode:>13.1f} "
            f"{rate.decode / origin:>9.1f} {1e3 * rate.step:>8.2f} {rate.of_floor:>11.2f}"
        )


def _print_splits(splits: Sequence[dict[str, object]]) -> None:
    if not splits:
        return
    print("\nmicroseconds of a decode step, timed part by part")
    print(f"{'workers':>8} {'batch':>6} " + " ".join(f"{part:>13}" for part in PARTS))
    for row in splits:
        parts = row["microseconds"]
        assert isinstance(parts, dict)
        columns = " ".join(f"{parts[part]:>13.0f}" for part in PARTS)
        print(f"{row['workers']:>8} {row['batch']:>6} {columns}")


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.engine().parse_args(argv)
    config = options_of(args, arguments.EngineBenchmark).engine
    configure_process(config)
    with (
        reporting("engine", args.out, argv) as report,
        opened(args.checkpoint, dtype_of(config)) as checkpoint,
    ):
        run(checkpoint, config, args, report)


if __name__ == "__main__":
    main()
