"""What a decode step costs per byte of weights, by family: `expertmesh bench families`.

All models are of about the same size and run in one process, in turns. The bytes are those that a step reads:
the shared part, and the experts that its rows went to.
"""

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import arguments
from benchmarks.engine import Load, bench_config, measure
from benchmarks.peers.models import MODELS, write_model
from benchmarks.physics import bytes_per_step
from benchmarks.report import Report, reporting
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.build_engine import build_engine
from coordinator.server.compute import dtype_of
from coordinator.server.experts import ServedExperts, open_experts
from coordinator.server.process import configure_process
from moe_model.checkpoint.initialise import initialise_like
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.layers.router import Routing

OURS = "modularforge"
# The most that a step of a Mixtral may cost of ModularForge's, per byte.
BAR = 1.05


class _Spread(RandomModel):
    """Embeddings as large as positions: else all rows of a step, which stand at the same position, go to
    the same experts."""

    def read_shared(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        shared = super().read_shared(dtype)
        return shared | {"embedding.weight": shared["embedding.weight"] * self.config.d_model**0.5}


@contextmanager
def _counting(experts: ServedExperts) -> Iterator[dict[int, list[int]]]:
    """By the number of rows of a step: to how many experts of each layer they went."""
    counts: defaultdict[int, list[int]] = defaultdict(list)
    begin = experts.begin

    def counted(layer: int, x_TD: Tensor, routing: Routing) -> Any:
        counts[len(x_TD)].append(len(set(routing.expert_ids_TK.flatten().tolist())))
        return begin(layer, x_TD, routing)

    with mock.patch.object(experts, "begin", counted):
        yield counts


def run(args: argparse.Namespace, report: Report) -> None:
    load = Load(args.prompt_tokens, args.new_tokens)
    given = EngineConfig(dtype=args.dtype, num_threads=args.threads)
    config = bench_config(given, max(args.batches), load)
    configure_process(config)
    with tempfile.TemporaryDirectory(prefix="expertmesh-families-") as made, ExitStack() as stack:
        initialise_like(Path(made) / OURS, _Spread(ModelConfig(), dtype=torch.bfloat16))
        checkpoints = {OURS: Checkpoint.open(Path(made) / OURS)}
        checkpoints |= {name: write_model(name, Path(made) / name) for name in MODELS}
        engines, counts = {}, {}
        for name, checkpoint in checkpoints.items():
            experts = stack.enter_context(open_experts(checkpoint, config, WorkersConfig(num_workers=0)))
            counts[name] = stack.enter_context(_counting(experts))
            engines[name] = build_engine(checkpoint, config, experts)
        rows = []
        for batch in args.batches:
            rounds: list[dict[str, float]] = []
            for _ in range(args.rounds + 1):
                rounds.append({})
                for name, engine in engines.items():
                    model = checkpoints[name].config
                    counts[name].clear()
                    steps = measure(engine, model.vocab_size, batch, load).steps
                    touched = statistics.mean(counts[name][batch])
                    num_bytes = bytes_per_step(model, dtype_of(config), batch, touched)
                    rounds[-1][name] = statistics.median(steps) / num_bytes
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
