"""What a node says of its cache: in its environment, for a worker has no command line."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from moe_model.errors import ConfigError
from moe_model.remote.cache import CacheFolder

CACHE = "EXPERTMESH_CACHE"
CACHE_BYTES = "EXPERTMESH_CACHE_BYTES"
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_AMOUNT = re.compile(r"(\d{1,15})\s*(KiB|MiB|GiB|TiB)?")


def cache_of(environment: Mapping[str, str] = os.environ) -> CacheFolder:
    """Raises ConfigError naming the variable."""
    given = environment.get(CACHE_BYTES)
    return CacheFolder(_folder(environment), None if not given else _num_bytes(given))


def _folder(environment: Mapping[str, str]) -> Path:
    if given := environment.get(CACHE):
        return Path(given)
    try:
        return Path.home() / ".cache" / "expertmesh"
    except RuntimeError:
        raise ConfigError(f"{CACHE}: there is no home folder; say in it where the cache shall be") from None


def _num_bytes(given: str) -> int:
    found = _AMOUNT.fullmatch(given.strip())
    if found is None or int(found[1]) == 0:
        raise ConfigError(
            f"{CACHE_BYTES}: {given[:80]!r} is not a number of bytes, as 200000000000 or 200GiB is"
        )
    return int(found[1]) * _UNITS[found[2] or ""]
