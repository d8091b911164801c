"""`expertmesh init`: a randomly initialised checkpoint, for benchmarks."""

import argparse
import sys
import time

from coordinator.commands.progress import ProgressLine, summary
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.importer import read_model_config
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import DTYPES
from moe_model.config import ModelConfig


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    config = ModelConfig() if args.config is None else read_model_config(args.config)
    with sigterm_exits(), ProgressLine(sys.stderr, "initialising") as progress:
        initialise_checkpoint(
            args.dest,
            config,
            seed=args.seed,
            dtype=DTYPES[args.dtype],
            force=args.force,
            on_progress=progress.update,
        )
    print(f"initialised with seed {args.seed} as {args.dtype}: {summary(args.dest, started)}")
    return 0
