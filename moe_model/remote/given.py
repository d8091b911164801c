"""The checkpoint that an argument means: a folder, a model by its name on the Hugging Face hub, or a URL."""

from pathlib import Path

from moe_model.checkpoint.hub import local_folder
from moe_model.checkpoint.reader import OnBytes
from moe_model.halt import Halt
from moe_model.remote.open_url import open_url
from moe_model.remote.url import is_url


def given_folder(given: str | Path, on_bytes: OnBytes | None = None, halt: Halt | None = None) -> Path:
    """A folder to open: of a model on the hub complete, of a URL what is fetched as it is read. `on_bytes` is
    told of what is downloaded first. Raises CheckpointError, ConfigError, HaltedError."""
    return open_url(str(given), on_bytes, halt) if is_url(str(given)) else local_folder(given, on_bytes)
