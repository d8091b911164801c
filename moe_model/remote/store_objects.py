"""Files of an object store, or of a disk: listed, and read in ranges, by fsspec's own for the scheme."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from moe_model.errors import CheckpointError
from moe_model.remote.listing import RemoteFile
from moe_model.remote.objects import has_changed
from moe_model.remote.source import Range
from moe_model.remote.url import CheckpointUrl

# What stores call what differs once an object has been replaced: the first that there is.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "updated")


class StoreObjects:
    """Raises ImportError without the extra packages. Credentials are the library's own to find."""

    def __init__(self, url: CheckpointUrl) -> None:
        self._url = url
        found: Any = fsspec.filesystem(url.parts.scheme)
        self.files = found if found.async_impl else AsyncFileSystemWrapper(found, asynchronous=False)
        self.loop: asyncio.AbstractEventLoop = self.files.loop
        self._listed: Mapping[str, Mapping[str, Any]] = {}
        self._root = str(found._strip_protocol(url.path)).rstrip("/")

    async def names(self) -> Sequence[str]:
        self._listed = await self._list()
        return list(self._listed)

    async def look(self, names: Sequence[str]) -> Mapping[str, RemoteFile]:
        """As they were listed."""
        found = self._listed
        return {name: _file(found[name]) for name in names if name in found}

    async def read(self, name: str, file: RemoteFile, ranges: Sequence[Range]) -> Sequence[bytes]:
        path = f"{self._root}/{name}"
        reads = (self.files._cat_file(path, start=begin, end=end) for begin, end in ranges)
        found: list[bytes] = await asyncio.gather(*reads)
        # Looked at afterwards: what has changed while it was read shows, too.
        self.files.invalidate_cache()
        now = _file(await self.files._info(path))
        if (now.size, now.version) != (file.size, file.version):
            raise has_changed(self._url.shown, name)
        return found

    async def _list(self) -> Mapping[str, Mapping[str, Any]]:
        self.files.invalidate_cache()
        found = await self.files._find(self._root, detail=True)
        if not found:
            raise CheckpointError(f"{self._url.shown}: there is no such folder, or nothing in it")
        prefix = f"{self._root}/"
        return {
            path.removeprefix(prefix): info
            for path, info in found.items()
            if path.startswith(prefix) and info.get("type") == "file"
        }


def _file(info: Mapping[str, Any]) -> RemoteFile:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return RemoteFile(int(info["size"]), version)
