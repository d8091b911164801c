"""What a decode step costs per byte of weights, by family: `expertmesh bench families`.

All models are of about the same size and run in one process, in turns. The bytes are those that a step reads:
the shared part, and the experts that its rows touch if they choose at random.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks import arguments
from benchmarks.engine import Load, bench_config, measure
from benchmarks.peers.models import MODELS, write_model
from benchmarks.physics import bytes_per_step
from benchmarks.report import Report, reporting
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.build_engine import build_engine
from coordinator.server.compute import dtype_of
from coordinator.server.experts import open_experts
from coordinator.server.process import configure_process
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig

OURS = "modularforge"
# The most that a step of a Mixtral may cost of ModularForge's, per byte.
BAR = 1.05


def run(args: argparse.Namespace, report: Report) -> None:
    load = Load(args.prompt_tokens, args.new_tokens)
    given = EngineConfig(dtype=args.dtype, num_threads=args.threads)
    config = bench_config(given, max(args.batches), load)
    configure_process(config)
    with tempfile.TemporaryDirectory(prefix="expertmesh-families-") as made, ExitStack() as stack:
        initialise_checkpoint(Path(made) / OURS, ModelConfig(), dtype=torch.bfloat16)
        checkpoints = {OURS: Checkpoint.open(Path(made) / OURS)}
        checkpoints |= {name: write_model(name, Path(made) / name) for name in MODELS}
        engines = {}
        for name, checkpoint in checkpoints.items():
            experts = stack.enter_context(open_experts(checkpoint, config, WorkersConfig(num_workers=0)))
            engines[name] = build_engine(checkpoint, config, experts)
        rows = []
        for batch in args.batches:
            rounds: list[dict[str, float]] = []
            for _ in range(args.rounds + 1):
                rounds.append({})
                for name, engine in engines.items():
                    model = checkpoints[name].config
                    steps = measure(engine, model.vocab_size, batch, load).steps
                    per_byte = statistics.median(steps) / bytes_per_step(model, dtype_of(config), batch)
                    rounds[-1][name] = per_byte
            # The first round warms up.
            for name in MODELS:
                ratios = [each[name] / each[OURS] for each in rounds[1:]]
                rows.append({"family": name, "batch": batch, "ratios": ratios})
                median = statistics.median(ratios)
                bar = f"; at most {BAR}: {'met' if median <= BAR else 'MISSED'}" if name == "mixtral" else ""
                print(
                    f"batch {batch}, {name} / {OURS}, time of a step per byte of weights: {median:.3f} "
                    f"({min(ratios):.3f} to {max(ratios):.3f}){bar}",
                    flush=True,
                )
    report.finish({"dtype": args.dtype, "rows": rows})


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.families().parse_args(argv)
    with reporting("families", args.out, argv) as report:
        run(args, report)


if __name__ == "__main__":
    main()
