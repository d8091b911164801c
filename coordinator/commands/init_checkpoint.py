"""`expertmesh init`: a randomly initialised checkpoint, for benchmarks."""

import argparse
import sys
import time

from coordinator.commands.init_arguments import InitArguments
from coordinator.commands.progress import progress_line, summary
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.importer import read_model_config
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import DTYPES
from moe_model.config import ModelConfig


def run(args: argparse.Namespace) -> int:
    given = options_of(args, InitArguments)
    started = time.monotonic()
    config = ModelConfig() if given.config is None else read_model_config(given.config)
    with sigterm_exits(), progress_line(sys.stderr, "initialising") as progress:
        initialise_checkpoint(
            given.dest,
            config,
            seed=given.seed,
            dtype=DTYPES[given.dtype],
            force=given.force,
            on_progress=progress,
        )
    print(f"initialised with seed {given.seed} as {given.dtype}: {summary(given.dest, started)}")
    return 0
