"""One tree's process for side_by_side.py, with that tree's modules: a batch's size in, seconds out.

Each tree runs its own file of this name, for the modules are not the same in both.
"""

import json
import os
import sys
from pathlib import Path

import torch

from benchmarks.engine import Load, bench_config, measure
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from coordinator.server.process import configure_process
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig

_LARGEST = 32


def initialise(path: str) -> None:
    """A random model of the default sizes, which the other tree must be able to read as well."""
    initialise_checkpoint(Path(path), ModelConfig(), dtype=torch.bfloat16)


def serve(path: str, workers: str, replicas: str, prompt_tokens: str, new_tokens: str) -> None:
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    checkpoint, load = Checkpoint.open(Path(path)), Load(int(prompt_tokens), int(new_tokens))
    config = bench_config(EngineConfig(dtype="bfloat16"), _LARGEST, load)
    configure_process(config)
    namespace = f"side-by-side-{os.getpid()}"
    options = WorkersConfig(num_workers=int(workers), replicas=int(replicas), ray_namespace=namespace)
    with open_experts(checkpoint, config, options) as experts:
        engine = build_engine(checkpoint, config, experts)
        for line in sys.stdin:
            run = measure(engine, checkpoint.config.vocab_size, int(line), load)
            print(json.dumps([run.prefill, run.steps]), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "init":
        initialise(sys.argv[2])
    else:
        serve(*sys.argv[1:])
