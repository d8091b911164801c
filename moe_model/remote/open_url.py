"""A checkpoint's URL as a folder of this process, opened once."""

import logging
import threading
from pathlib import Path

from moe_model.checkpoint.manifest import MANIFEST
from moe_model.checkpoint.reader import OnBytes
from moe_model.files.mirrored import mirrored_folder
from moe_model.halt import Halt
from moe_model.remote.listing import BLOCK_SUMS
from moe_model.remote.mirror import Mirror, open_mirror
from moe_model.remote.settings import cache_of
from moe_model.remote.url import CheckpointUrl
from moe_model.remote.url_listing import read_listing
from moe_model.remote.url_source import UrlSource

logger = logging.getLogger(__name__)
_OPENED: dict[str, Mirror] = {}
_LOCK = threading.Lock()


def open_url(given: str, on_bytes: OnBytes | None = None, halt: Halt | None = None) -> Path:
    """The folder of `mirror_of_url`."""
    return mirror_of_url(given, on_bytes, halt).path


def mirror_of_url(given: str, on_bytes: OnBytes | None = None, halt: Halt | None = None) -> Mirror:
    """A mirror, which stays open as long as the process lives; the same one for the same URL. `on_bytes` is
    told of what is fetched at once. Raises CheckpointError, ConfigError, HaltedError."""
    with _LOCK:
        mirror = _OPENED.get(given)
        if mirror is None or mirrored_folder(mirror.path) is None:
            mirror = _OPENED[given] = _open(CheckpointUrl.parse(given), on_bytes, halt or Halt())
        return mirror


def _open(url: CheckpointUrl, on_bytes: OnBytes | None, halt: Halt) -> Mirror:
    source, cache = UrlSource(url), cache_of()
    listing = read_listing(source, halt)
    mirror = open_mirror(
        *(listing.key(url.shown), listing, source, cache),
        name=url.name,
        location=url.given,
        halt=halt,
        on_bytes=on_bytes,
    )
    num_bytes = sum(file.size for file in listing.files.values())
    logger.info("%s: %d files, %d bytes, in %s", url.shown, len(listing.files), num_bytes, mirror.path.parent)
    if MANIFEST not in listing.files and BLOCK_SUMS not in listing.files:
        logger.warning(
            "%s: has no %s: bytes are checked by size and ETag only (expertmesh sums)", url.shown, BLOCK_SUMS
        )
    return mirror
