"""A source by URL: a store that is asked again where it fails, until a deadline, and never beyond a halt."""

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from moe_model.errors import CheckpointError, ConfigError, ExpertMeshError
from moe_model.halt import Halt
from moe_model.remote.listing import RemoteFile
from moe_model.remote.objects import Objects, TryAgainError
from moe_model.remote.source import Range
from moe_model.remote.url import SCHEMES, CheckpointUrl, without_secrets

T = TypeVar("T")
logger = logging.getLogger(__name__)

_OBJECTS = {"http": "http_objects.HttpObjects", "https": "http_objects.HttpObjects"}


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: of one try, of all tries of one read, and the pause after the first, which doubles."""

    one: float = 60.0
    all: float = 180.0
    pause: float = 0.25
    longest_pause: float = 8.0


class UrlSource:
    """A RangeSource. Any thread."""

    def __init__(self, url: CheckpointUrl, patience: Patience | None = None) -> None:
        """Raises ConfigError for a scheme whose packages are not installed."""
        self.where, self._patience = url.shown, patience or Patience()
        self._files: dict[str, RemoteFile] = {}
        module, name = _OBJECTS.get(url.parts.scheme, "store_objects.StoreObjects").split(".")
        try:
            self._objects: Objects = getattr(importlib.import_module(f"moe_model.remote.{module}"), name)(url)
        except ImportError:
            extra = SCHEMES[url.parts.scheme]
            raise ConfigError(
                f"{url.shown}: needs more packages: pip install 'expertmesh[{extra}]'"
            ) from None

    def names(self, halt: Halt) -> Sequence[str] | None:
        """All files; None where a server does not list them. Raises CheckpointError, HaltedError."""
        return self._run(self._objects.names, halt)

    def look(self, names: Sequence[str], halt: Halt) -> Mapping[str, RemoteFile]:
        """Those that there are; from now on they are read as they are now. Raises CheckpointError,
        HaltedError."""
        found = self._run(lambda: self._objects.look(names), halt)
        self._files |= found
        return found

    def read_whole(self, name: str, halt: Halt) -> bytes:
        """Of a file that has been looked at. Raises CheckpointError, HaltedError."""
        size = self._files[name].size
        return self.read(name, [(0, size)], halt)[0] if size else b""

    def read(self, name: str, ranges: Sequence[Range], halt: Halt) -> Sequence[bytes]:
        file = self._files[name]
        return self._run(lambda: self._objects.read(name, file, ranges), halt)

    def known(self, files: Mapping[str, RemoteFile]) -> None:
        """Of files that need no look: their sizes are known, and sums that are checked."""
        self._files |= files

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], halt: Halt) -> T:
        until, why = time.monotonic() + self._patience.all, ""
        for tries in count(1):
            left = until - time.monotonic()
            if left <= 0:
                raise CheckpointError(f"{why}; tried {tries - 1} times in {self._patience.all:g} s")
            try:
                return self._try(work, halt, min(left, self._patience.one))
            except TryAgainError as error:
                why = str(error)
            logger.warning("%s; it is tried again", why)
            self._pause(tries, halt)
        raise AssertionError("it counts without an end")

    def _try(self, work: Callable[[], Coroutine[Any, Any, T]], halt: Halt, seconds: float) -> T:
        future = asyncio.run_coroutine_threadsafe(work(), self._objects.loop)
        try:
            return halt.result(future, seconds)
        except (ExpertMeshError, TryAgainError):
            raise
        except TimeoutError:
            raise TryAgainError(f"{self.where}: does not answer within {seconds:.0f} s") from None
        except (FileNotFoundError, PermissionError) as error:
            raise CheckpointError(f"{self.where}: {_reason(error)}") from None
        except OSError as error:
            raise TryAgainError(f"{self.where}: {_reason(error)}") from None
        # Each library has errors of its own, without a common base, and has tried again where that is of use.
        except Exception as error:  # noqa: BLE001
            raise CheckpointError(f"{self.where}: {_reason(error)}") from None
        finally:
            future.cancel()

    def _pause(self, tries: int, halt: Halt) -> None:
        seconds = min(self._patience.pause * 2 ** (tries - 1), self._patience.longest_pause)
        never: Future[None] = Future()
        try:
            halt.result(never, seconds)
        except TimeoutError:
            return


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return without_secrets(first)[:200] or type(error).__name__
