"""A source by URL: a store that is asked again where it fails, until a deadline, and never beyond a halt."""

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
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
    """Seconds: without a byte, which ends a try; of all tries of one read, and as many more as its bytes take
    at `bytes_per_second`; and the pause after the first try, which doubles."""

    silent: float = 60.0
    all: float = 180.0
    bytes_per_second: float = 16 << 10
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
        seconds = sum(end - begin for begin, end in ranges) / self._patience.bytes_per_second
        return self._run(lambda: self._objects.read(name, file, ranges), halt, seconds)

    def known(self, files: Mapping[str, RemoteFile]) -> None:
        """Of files that need no look: their sizes are known, and sums that are checked."""
        self._files |= files

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], halt: Halt, more_seconds: float = 0.0) -> T:
        started = time.monotonic()
        until = started + self._patience.all + more_seconds
        for tries in count(1):
            try:
                return self._try(work, halt, until)
            except TryAgainError as error:
                why = str(error)
            pause = min(self._patience.pause * 2 ** (tries - 1), self._patience.longest_pause)
            if time.monotonic() + pause >= until:
                break
            logger.warning("%s; it is tried again", why)
            _wait(pause, halt)
        raise CheckpointError(f"{why}; tried {tries} times in {time.monotonic() - started:.1f} s")

    def _try(self, work: Callable[[], Coroutine[Any, Any, T]], halt: Halt, until: float) -> T:
        future = asyncio.run_coroutine_threadsafe(work(), self._objects.loop)
        try:
            return self._result(future, halt, until)
        except (ExpertMeshError, TryAgainError):
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise CheckpointError(f"{self.where}: {_reason(error)}") from None
        except OSError as error:
            raise TryAgainError(f"{self.where}: {_reason(error)}") from None
        # Each library has errors of its own, without a common base, and has tried again where that is of use.
        except Exception as error:  # noqa: BLE001
            raise CheckpointError(f"{self.where}: {_reason(error)}") from None
        finally:
            future.cancel()

    def _result(self, future: "Future[T]", halt: Halt, until: float) -> T:
        """While bytes come, it is waited for."""
        while True:
            num_bytes, left = self._objects.num_bytes, until - time.monotonic()
            seconds = max(0.0, min(left, self._patience.silent))
            try:
                return halt.result(future, seconds)
            except TimeoutError:
                if future.done() or self._objects.num_bytes == num_bytes:
                    raise TryAgainError(f"{self.where}: sends nothing for {seconds:.1f} s") from None
                if left <= seconds:
                    raise TryAgainError(f"{self.where}: is too slow") from None


def _wait(seconds: float, halt: Halt) -> None:
    """Raises HaltedError."""
    never: Future[None] = Future()
    with suppress(TimeoutError):
        halt.result(never, seconds)


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return without_secrets(first)[:200] or type(error).__name__
