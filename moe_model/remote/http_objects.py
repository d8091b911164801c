"""Files behind HTTP: ranges of them, and no list. A server that sends no ranges is refused by name."""

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import fsspec

from moe_model.errors import CheckpointError
from moe_model.remote.listing import RemoteFile
from moe_model.remote.objects import TryAgainError, has_changed
from moe_model.remote.source import Range
from moe_model.remote.url import CheckpointUrl, without_secrets

# So many questions at once: a server counts them.
_AT_ONCE = 8
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_OF_NOTHING = re.compile(r"bytes \*/0")
_ABSENT, _UNAUTHORISED, _FORBIDDEN = (404, 410), 401, 403
_PARTIAL, _BEYOND, _CHANGED, _SERVER_ERROR = 206, 416, 412, 500
_BUSY = (408, 425, 429)
_CHUNK_BYTES = 64 << 10
# Its caller knows how long it has.
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


class HttpObjects:
    """Raises ImportError without the extra packages."""

    def __init__(self, url: CheckpointUrl) -> None:
        self._url, self.num_bytes = url, 0
        # Proxies and .netrc, as for other programs; this machine is never behind a proxy.
        options = {"trust_env": not _is_this_machine(url.parts.hostname or "")}
        self.files: Any = fsspec.filesystem(url.parts.scheme, client_kwargs=options, encoded=True)
        self.loop: asyncio.AbstractEventLoop = self.files.loop
        self._is_let_in = False
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def names(self) -> None:
        return None

    async def look(self, names: Sequence[str]) -> Mapping[str, RemoteFile]:
        """Stores that do not list what they have deny what they have not: one file that is there shows that
        others are not, and no credentials wrong."""
        found = await asyncio.gather(*(self._look(name) for name in names))
        files = {name: file for name, file in zip(names, found, strict=True) if isinstance(file, RemoteFile)}
        self._is_let_in |= bool(files)
        denied = [file for file in found if isinstance(file, CheckpointError)]
        if denied and not self._is_let_in:
            raise denied[0]
        return files

    async def read(self, name: str, file: RemoteFile, ranges: Sequence[Range]) -> Sequence[bytes]:
        return await asyncio.gather(*(self._read(name, file, begin, end) for begin, end in ranges))

    async def _look(self, name: str) -> RemoteFile | CheckpointError | None:
        """By its first byte: that shows its size, its version, and whether ranges are sent. None: it is not
        there; an error: it may be."""
        async with self._asked(name, 0, 1) as response:
            status, headers = response.status, response.headers
            if status in _ABSENT:
                return None
            if status == _BEYOND and _OF_NOTHING.fullmatch(headers.get("Content-Range", "")):
                return RemoteFile(0, _version(headers))
            if status == _FORBIDDEN:
                return self._denied(name, status)
            return RemoteFile(self._check(response, name, 0, 1), _version(headers))

    async def _read(self, name: str, file: RemoteFile, begin: int, end: int) -> bytes:
        async with self._asked(name, begin, end) as response:
            if response.status == _BEYOND:
                raise has_changed(self._url.shown, name)
            size, version = self._check(response, name, begin, end), _version(response.headers)
            if size != file.size or (file.version and version != file.version):
                raise has_changed(self._url.shown, name)
            data = bytearray()
            # No more than was asked for, whatever is sent.
            while len(data) < end - begin and (
                chunk := await response.content.read(min(_CHUNK_BYTES, end - begin - len(data)))
            ):
                data += chunk
                self.num_bytes += len(chunk)
            if len(data) < end - begin:
                raise TryAgainError(f"{self._url.shown}/{name}: the connection broke off")
            return bytes(data)

    @asynccontextmanager
    async def _asked(self, name: str, begin: int, end: int) -> AsyncIterator[Any]:
        """The answer of the server, of which the body has not been read."""
        session = await self.files.set_session()
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        url = self.files.encode_url(self._url.file(name))
        try:
            async with self._turns, session.get(url, headers=headers, timeout=_NO_TIMEOUT) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:
            why = without_secrets(str(error))[:200] or type(error).__name__
            raise TryAgainError(f"{self._url.shown}/{name}: {why}") from None

    def _denied(self, name: str, status: int) -> CheckpointError:
        what = f"{self._url.shown}/{name}"
        return CheckpointError(f"{what}: the server answers {status}: it wants credentials, or others")

    def _check(self, response: Any, name: str, begin: int, end: int) -> int:
        """The size of the whole file, of an answer that has this range of it."""
        what, status = f"{self._url.shown}/{name}", response.status
        if status in _ABSENT:
            raise CheckpointError(f"{what}: is not there")
        if status in (_UNAUTHORISED, _FORBIDDEN):
            raise self._denied(name, status)
        if status in _BUSY or status >= _SERVER_ERROR:
            raise TryAgainError(f"{what}: the server answers {status}")
        if status == 200:
            raise CheckpointError(
                f"{what}: the server sends whole files and no ranges of them: use one that does, or download "
                "the folder and give its path"
            )
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status != _PARTIAL or found is None:
            raise CheckpointError(f"{what}: the server answers {status} to a request for a range")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointError(f"{what}: the server compresses it, so ranges are not those of the file")
        size = int(found[3])
        if (int(found[1]), int(found[2])) != (begin, end - 1):
            # The end of a file that has become shorter.
            raise has_changed(self._url.shown, name)
        return size


def _version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
