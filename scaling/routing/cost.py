"""What recording costs an engine's steps, and what forcing does: `python -P -m scaling.routing.cost
CHECKPOINT`.

Engines take turns, run by run. The forced one replays what the plain one did: the same experts, so that all
of the difference is what forcing itself takes. Skewed routing is another matter: it changes what experts
cost."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.engine import Load, bench_config, measure
from coordinator.config.engine import EngineConfig
from coordinator.config.routing import ForcedRouting, RoutingConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.forcing import HashedForcing
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from coordinator.server.routing import forcing_of, recording
from moe_model.checkpoint.reader import Checkpoint

LOAD = Load(16, 64)


def main(words: Sequence[str]) -> int:
    """Prints a line for each number of workers and batch: medians of a step, and what is more of it."""
    parser = argparse.ArgumentParser(prog="scaling.routing.cost")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--workers", default="0")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args(words)
    checkpoint = Checkpoint.open(given.checkpoint)
    config = EngineConfig(dtype=given.dtype)
    batches = [int(each) for each in given.batches.split(",")]
    for workers in map(int, given.workers.split(",")):
        for batch in batches:
            _tell(workers, batch, _steps(checkpoint, config, workers, batch, given.rounds))
    _tell_table(checkpoint)
    return 0


def _steps(
    checkpoint: Checkpoint, config: EngineConfig, workers: int, batch: int, num_rounds: int
) -> Mapping[str, list[float]]:
    """Median seconds of a decode step of each round."""
    made = bench_config(config, batch, LOAD)
    steps: dict[str, list[float]] = {"plain": [], "recorded": [], "forced": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        experts = stack.enter_context(open_experts(checkpoint, made, WorkersConfig(num_workers=workers)))

        def engine(config: RoutingConfig, name: str) -> Engine:
            recorder = stack.enter_context(recording(checkpoint, config, lambda _n, _is: None))
            forcing = forcing_of(config.force, checkpoint.config, first_key=0)
            if recorder is not None:
                recorder.open()
            return build_engine(checkpoint, made, experts, recorder=recorder, forcing=forcing)

        first = RoutingConfig(record=folder / "first")
        with recording(checkpoint, first, lambda _n, _is: None) as recorder:
            assert recorder is not None
            recorder.open()
            built = build_engine(checkpoint, made, experts, recorder=recorder)
            measure(built, checkpoint.config.vocab_size, batch, LOAD)
        engines = {
            "plain": engine(RoutingConfig(), "plain"),
            "recorded": engine(RoutingConfig(record=folder / "second"), "recorded"),
            "forced": engine(RoutingConfig(force=ForcedRouting(path=str(folder / "first"))), "forced"),
        }
        for turn in range(num_rounds + 1):
            for name, each in engines.items():
                run = measure(each, checkpoint.config.vocab_size, batch, LOAD)
                if turn:
                    steps[name].append(statistics.median(run.steps))
    return steps


def _tell(workers: int, batch: int, steps: Mapping[str, list[float]]) -> None:
    plain = steps["plain"]
    parts = [f"{workers} workers, batch {batch:3d}: a step {1e3 * statistics.median(plain):.3f} ms"]
    for name in ("recorded", "forced"):
        more = sorted(1e6 * (a - b) for a, b in zip(steps[name], plain, strict=True))
        parts.append(f"{name} {statistics.median(more):+.0f} us ({more[0]:+.0f} to {more[-1]:+.0f})")
    sys.stdout.write(", ".join(parts) + "\n")
    sys.stdout.flush()


class _Rows:
    """What a forcing asks of a batch."""

    def __init__(self, num_tokens: int) -> None:
        self.positions_T = torch.arange(num_tokens)
        self.token_ids_T = torch.arange(num_tokens)


def _tell_table(checkpoint: Checkpoint) -> None:
    """Of a law, what is looked up once a step."""
    forcing = forcing_of(replace(ForcedRouting(1.0), seed=0), checkpoint.config)
    assert isinstance(forcing, HashedForcing)
    for num_tokens in (1, 32, 512):
        rows = _Rows(num_tokens)
        started = time.perf_counter()
        for _ in range(1000):
            forcing.rows(rows)  # type: ignore[arg-type]
        sys.stdout.write(f"rows of {num_tokens} tokens: {1e3 * (time.perf_counter() - started):.1f} us\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
