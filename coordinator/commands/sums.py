"""`expertmesh sums`: the sums of a Hugging Face folder's blocks, for those who fetch it by URL."""

import argparse
import sys
import time

from coordinator.commands.amounts import format_bytes
from coordinator.commands.progress import bytes_line
from coordinator.commands.sums_arguments import SumsArguments
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.remote.block_sums import write_block_sums


def run(args: argparse.Namespace) -> int:
    """Raises CheckpointError."""
    given, started = options_of(args, SumsArguments), time.monotonic()
    checkpoint = Checkpoint.open(given.folder)
    if not checkpoint.digests:
        raise CheckpointError(f"{given.folder}: needs no sums, the one of each file is in its manifest")
    with sigterm_exits(), bytes_line(sys.stderr, "summing") as on_bytes:
        dest = write_block_sums(checkpoint.path, sorted(checkpoint.digests), on_bytes)
    num_bytes = sum(checkpoint.files[name].size for name in checkpoint.digests)
    seconds = time.monotonic() - started
    print(f"summed {len(checkpoint.digests)} files, {format_bytes(num_bytes)}, {seconds:.1f} s -> {dest}")
    return 0
