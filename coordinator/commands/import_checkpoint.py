"""`expertmesh import`: the files of ModularForge or Hugging Face -> a checkpoint of ours."""

import argparse
import sys
import time

from coordinator.commands.progress import ProgressLine, summary
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.importer import ImportOptions, import_checkpoint
from moe_model.checkpoint.manifest import DTYPES, dtype_name


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
