"""`expertmesh export`: a checkpoint -> the Hugging Face folder that its family's authors would publish."""

import argparse
import sys
import time
from pathlib import Path

from coordinator.commands.amounts import format_bytes
from coordinator.commands.export_arguments import ExportArguments
from coordinator.commands.progress import bytes_line, progress_line
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.manifest import DTYPES, dtype_name
from moe_model.checkpoint.reader import Checkpoint
from moe_model.remote.given import given_folder


def run(args: argparse.Namespace) -> int:
    given = options_of(args, ExportArguments)
    started = time.monotonic()
    with bytes_line(sys.stderr, "downloading") as on_bytes:
        folder = given_folder(given.checkpoint, on_bytes)
    checkpoint = Checkpoint.open(folder)
    dtype = checkpoint.dtype if given.dtype is None else DTYPES[given.dtype]
    with sigterm_exits(), progress_line(sys.stderr, "exporting", "module") as progress:
        export_checkpoint(checkpoint, given.dest, ExportOptions(dtype), progress)
    files = list(Path(given.dest).iterdir())
    num_bytes = sum(path.stat().st_size for path in files)
    print(
        f"exported {given.checkpoint} as {dtype_name(dtype)}: {len(files)} files, "
        f"{format_bytes(num_bytes)}, {time.monotonic() - started:.1f} s -> {given.dest}"
    )
    return 0
