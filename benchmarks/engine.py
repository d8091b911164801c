"""Prefill and decode rates of the engine, alone and with expert workers. `make bench`.

Prints the physics, a table for people, and one JSON line for machines. The origin is the same arithmetic
without a cache: every token computes its whole context again, as the model's authors' own `generate` does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.checkpoints import opened
from benchmarks.physics import Machine, decode_floor_seconds, measure_machine
from coordinator.config import EngineConfig, WorkersConfig
from coordinator.engine.engine import Engine
from coordinator.engine.request import Output, Request, StopRules
from coordinator.main import build_engine, configure_process, open_experts
from moe_model.assembled import AssembledModel
from moe_model.checkpoint import Checkpoint
from moe_model.manifest import DTYPES, dtype_name
from moe_model.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Rate:
    """Medians over the repeats, tokens per second of all sequences together."""

    workers: int
    batch: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Load:
    """What every sequence of a run has."""

    prompt_tokens: int
    new_tokens: int
    repeats: int


def measure(engine: Engine, vocab_size: int, batch: int, workers: int, load: Load) -> Rate:
    """The first run warms up and is not counted."""
    runs = [_run(engine, vocab_size, batch, load) for _ in range(load.repeats + 1)][1:]
    prefill, decode = (statistics.median(column) for column in zip(*runs, strict=True))
    return Rate(workers, batch, batch * load.prompt_tokens / prefill, batch * (load.new_tokens - 1) / decode)


def _run(engine: Engine, vocab_size: int, batch: int, load: Load) -> tuple[float, float]:
    """Seconds until every sequence has its first token, and from there to the end."""
    rules = StopRules(load.new_tokens, ignore_eos=True)
    for index in range(batch):
        prompt = tuple((37 * index + 11 * i) % (vocab_size - 4) + 4 for i in range(load.prompt_tokens))
        engine.submit(Request(f"bench-{index}", prompt, SamplingParams(temperature=0), rules))
    started = time.perf_counter()
    started_ids: set[str] = set()
    while len(started_ids) < batch:
        started_ids |= {output.request_id for output in _step(engine)}
    prefilled = time.perf_counter()
    while engine.has_work:
        _step(engine)
    return prefilled - started, time.perf_counter() - prefilled


def _step(engine: Engine) -> Sequence[Output]:
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


def run(checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace) -> None:
    machine = measure_machine(config.dtype)
    floor = decode_floor_seconds(checkpoint.config, config.dtype, machine)
    _print_physics(machine, floor, config.dtype)
    load = Load(args.prompt_tokens, args.new_tokens, args.repeats)
    # One chunk per batch, so that "prefill" is one step; and nothing that the run before has left.
    largest = max(args.batches)
    config = replace(
        config,
        max_step_tokens=largest * args.prompt_tokens + 1,
        max_num_seqs=largest + 1,
        prefix_caching=False,
    )
    rates = []
    origin = measure_origin(checkpoint, config.dtype, load)
    print(f"\norigin (no cache), batch 1: {origin:.1f} tokens/s\n")
    print(f"{'workers':>8} {'batch':>6} {'prefill tok/s':>14} {'decode tok/s':>13} {'x origin':>9}")
    for workers in args.workers:
        with open_experts(checkpoint, config, WorkersConfig(num_workers=workers)) as experts:
            engine = build_engine(checkpoint, config, experts)
            for batch in args.batches:
                rate = measure(engine, checkpoint.config.vocab_size, batch, workers, load)
                rates.append(rate)
                _print_rate(rate, origin)
    print(json.dumps(_summary(config, machine, floor, load, origin, rates)))


def _print_physics(machine: Machine, floor: float, dtype: torch.dtype) -> None:
    print(
        f"{machine.num_threads} threads read {machine.read_bytes_per_second / 1e9:.1f} GB/s and multiply "
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s in {dtype_name(dtype)}; "
        f"one token of one sequence reads every active weight once: at least {1e3 * floor:.2f} ms, "
        f"at most {1 / floor:.0f} tokens/s"
    )


def _print_rate(rate: Rate, origin: float) -> None:
    ratio = rate.decode_tokens_per_second / origin
    print(
        f"{rate.workers:>8} {rate.batch:>6} {rate.prefill_tokens_per_second:>14.0f} "
        f"{rate.decode_tokens_per_second:>13.1f} {ratio:>9.1f}",
        flush=True,
    )


def _summary(
    config: EngineConfig, machine: Machine, floor: float, load: Load, origin: float, rates: Sequence[Rate]
) -> dict[str, object]:
    return {
        "benchmark": "engine",
        "dtype": dtype_name(config.dtype),
        "machine": asdict(machine),
        "decode_floor_tokens_per_second": 1 / floor,
        "load": asdict(load),
        "origin_tokens_per_second": origin,
        "rates": [asdict(rate) for rate in rates],
    }


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Prefill and decode rates, alone and with expert workers.")
    parser.add_argument("--checkpoint", type=Path, help="default: a random 54.6 M model, made for the run")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batches", type=_numbers, default=[1, 8, 32])
    parser.add_argument("--workers", type=_numbers, default=[0, 2], help="0: in this process")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    config = EngineConfig(dtype=DTYPES[args.dtype], num_threads=args.threads)
    configure_process(config)
    with opened(args.checkpoint, config.dtype) as checkpoint:
        run(checkpoint, config, args)


if __name__ == "__main__":
    main()
