"""`expertmesh init`: a randomly initialised checkpoint, for benchmarks and tests."""

import argparse
import sys
import time

from coordinator.commands.init_arguments import InitArguments
from coordinator.commands.progress import progress_line, summary
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.checkpoint.hub import local_config
from moe_model.checkpoint.importer import read_model_config
from moe_model.checkpoint.initialise import initialise_checkpoint, initialise_like
from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.manifest import DTYPES
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.writer import Progress
from moe_model.config import ModelConfig
from moe_model.remote.given import given_folder
from moe_model.remote.url import is_url


def run(args: argparse.Namespace) -> int:
    given = options_of(args, InitArguments)
    started = time.monotonic()
    with sigterm_exits(), progress_line(sys.stderr, "initialising") as progress:
        if given.like is None:
            _by_sizes(given, progress)
        else:
            _like(given, progress)
    print(f"initialised with seed {given.seed} as {given.dtype}: {summary(given.dest, started)}")
    return 0


def _by_sizes(given: InitArguments, progress: Progress) -> None:
    config = ModelConfig() if given.config is None else read_model_config(given.config)
    dtype = DTYPES[given.dtype]
    initialise_checkpoint(
        given.dest, config, seed=given.seed, dtype=dtype, force=given.force, on_progress=progress
    )


def _like(given: InitArguments, progress: Progress) -> None:
    assert given.like is not None
    like = given_folder(given.like) if is_url(given.like) else local_config(given.like)
    config = config_like(like, given.layers)
    scale = 1.0 if given.scale is None else given.scale
    model = RandomModel(config, given.seed, dtype=DTYPES[given.dtype], scale=scale)
    initialise_like(given.dest, model, force=given.force, on_progress=progress)
