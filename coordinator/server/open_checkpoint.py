"""The checkpoint that a server is told to serve, opened; its notes go into the log."""

import logging
from pathlib import Path

from coordinator.server.phases import UNTOLD, Phases
from moe_model.checkpoint.reader import Checkpoint
from moe_model.halt import Halt
from moe_model.remote.given import given_folder

logger = logging.getLogger(__name__)


def open_checkpoint(given: str | Path, phases: Phases = UNTOLD, halt: Halt | None = None) -> Checkpoint:
    """Downloads what is not there yet. Raises CheckpointError, ConfigError, TokenizerError; HaltedError soon
    after `halt` was set."""
    halt = halt or Halt()

    def on_bytes(done: int, total: int) -> None:
        halt.check()
        phases.progress(done, total)

    checkpoint = Checkpoint.open(given_folder(given, on_bytes, halt))
    for note in checkpoint.notes:
        logger.warning("%s", note)
    return checkpoint
