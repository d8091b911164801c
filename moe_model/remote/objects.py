"""What a source by URL needs of a store, and which errors are worth another try. On fsspec's event loop."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from moe_model.errors import CheckpointError
from moe_model.remote.listing import RemoteFile
from moe_model.remote.source import Range


class TryAgainError(Exception):
    """The world's, and it may be over soon. One line, without secrets."""


class Objects(Protocol):
    """The files below one URL, asked on `loop`. Every method raises CheckpointError, TryAgainError, or what
    its library does."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    async def names(self) -> Sequence[str] | None:
        """All of them; None where they cannot be listed. Asked first."""

    async def look(self, names: Sequence[str]) -> Mapping[str, RemoteFile]:
        """Those of the files that there are."""

    async def read(self, name: str, file: RemoteFile, ranges: Sequence[Range]) -> Sequence[bytes]:
        """Ranges of a file that must still be the one that was listed."""


def has_changed(where: str, name: str) -> CheckpointError:
    return CheckpointError(f"{where}/{name}: has changed since it was opened: start again to use the new one")
