"""`expertmesh import`: ModularForge's files -> a checkpoint of ours."""

import argparse
import sys
import time
from pathlib import Path

from coordinator.commands.progress import ProgressLine, summary
from coordinator.commands.termination import sigterm_exits
from moe_model.importer import ImportOptions, import_checkpoint
from moe_model.manifest import DTYPES, dtype_name

HELP = "import a model made by ModularForge"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an assembled .pt or .safetensors file, or an output folder with such a file or with parts",
    )
    parser.add_argument("dest", metavar="DEST", help="the new checkpoint's folder")
    parser.add_argument(
        "--router",
        metavar="uniform|kaiming|FILE",
        help="for a folder of parts, which has no router: zeros, random, or weights or centroids from a file",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="the configuration (yaml or json) of a source that has none in or beside it",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="default: float32, or bfloat16 if that is what the source has"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --router kaiming (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint at DEST")


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    options = ImportOptions(
        router=args.router,
        config_path=args.config,
        dtype=None if args.dtype is None else DTYPES[args.dtype],
        seed=args.seed,
        force=args.force,
    )
    with sigterm_exits(), ProgressLine(sys.stderr, "importing") as progress:
        report = import_checkpoint(args.source, args.dest, options, progress.update)
    for note in report.notes:
        print(f"note: {note}")
    print(f"imported {args.source} as {dtype_name(report.dtype)}: {summary(args.dest, started)}")
    return 0
