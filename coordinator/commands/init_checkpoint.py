"""`expertmesh init`: a randomly initialised checkpoint, for benchmarks."""

import argparse
import sys
import time
from pathlib import Path

from coordinator.commands.progress import ProgressLine, summary
from coordinator.commands.termination import sigterm_exits
from moe_model.config import ModelConfig
from moe_model.importer import read_model_config
from moe_model.initialise import initialise_checkpoint
from moe_model.manifest import DTYPES

HELP = "write a randomly initialised model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dest", metavar="DEST", help="the new checkpoint's folder")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="sizes (yaml or json); default: the 54.6 M parameter model",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same model (default: 0)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint at DEST")


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
