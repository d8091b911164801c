"""`expertmesh import`: the files of ModularForge or Hugging Face -> a checkpoint of ours."""

import argparse
import sys
import time

from coordinator.commands.import_arguments import ImportArguments
from coordinator.commands.progress import bytes_line, progress_line, summary
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.importer import ImportOptions, import_checkpoint
from moe_model.checkpoint.manifest import DTYPES, dtype_name
from moe_model.remote.given import given_folder


def run(args: argparse.Namespace) -> int:
    given = options_of(args, ImportArguments)
    started = time.monotonic()
    options = ImportOptions(
        router=given.router,
        config_path=given.config,
        dtype=None if given.dtype is None else DTYPES[given.dtype],
        seed=given.seed,
        force=given.force,
    )
    with sigterm_exits(), bytes_line(sys.stderr, "downloading") as on_bytes:
        source = given_folder(given.source, on_bytes)
    with sigterm_exits(), progress_line(sys.stderr, "importing") as progress:
        report = import_checkpoint(source, given.dest, options, progress)
    for note in report.notes:
        print(f"note: {note}")
    print(f"imported {given.source} as {dtype_name(report.dtype)}: {summary(given.dest, started)}")
    return 0
