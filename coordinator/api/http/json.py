"""Reading JSON bodies: bounded, strict about types, and naming the parameter at fault.

What a field means is not known here.
"""

import asyncio
import gc
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from coordinator.api.http.fields import nearest
from coordinator.api.http.inflate import inflated, is_compressed
from coordinator.api.shared.errors import ApiError, Quota, Reason

MAX_BODY_BYTES = 16 << 20
# Of all bodies that are being read.
MAX_BYTES_AT_ONCE = 128 << 20
MAX_ELEMENTS = 1 << 20
# Of the body's own object: what is not known is named, one by one.
MAX_FIELDS = 1024
# Of an unknown field, as an error shows it.
MAX_NAME = 80
# That one body may take to arrive.
BODY_SECONDS = 60.0


class BodyReader:
    """Reads bodies, each in bounded time and all of them together in bounded memory."""

    def __init__(self, max_seconds: float = BODY_SECONDS) -> None:
        self._max_seconds = max_seconds
        self._num_bytes = 0

    async def read_object(self, request: Request) -> dict[str, Any]:
        """The body's object. Raises ApiError; reads no more than is allowed."""
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise _too_large()
        compressed = is_compressed(request.headers.getlist("content-encoding"))
        with self._holding() as held:
            data = await self._received(request, held)
            if compressed and data:
                # Elsewhere, for it takes some hundredths of a second whatever the size of what came.
                content = await asyncio.to_thread(inflated, bytes(data), MAX_BODY_BYTES)
                if content is None:
                    raise _too_large()
                self._take(len(content), held)
                return _parsed(content)
            return _parsed(data)

    async def _received(self, request: Request, held: "_Held") -> bytearray:
        data = bytearray()
        try:
            async with asyncio.timeout(self._max_seconds):
                async for part in request.stream():
                    data += part
                    self._take(len(part), held)
                    if len(data) > MAX_BODY_BYTES:
                        raise _too_large()
        except ClientDisconnect:
            raise invalid("body", "ended before it was complete") from None
        except TimeoutError:
            raise invalid("body", f"did not arrive within {self._max_seconds:g} s") from None
        return data

    def _take(self, num_bytes: int, held: "_Held") -> None:
        held.num_bytes += num_bytes
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_BYTES_AT_ONCE:
            quota = Quota("bodies", f"more than {MAX_BYTES_AT_ONCE} bytes are being read")
            raise ApiError.of(
                Reason.QUEUE_FULL, "too many large bodies at once; try again later", quota=quota
            )

    @contextmanager
    def _holding(self) -> Iterator["_Held"]:
        """What one body takes of the room for all, until it has been read."""
        held = _Held()
        try:
            yield held
        finally:
            self._num_bytes -= held.num_bytes


@dataclass(slots=True)
class _Held:
    num_bytes: int = 0


def _parsed(data: bytes | bytearray) -> dict[str, Any]:
    # No other call runs while this does: a million elements take some tenths of a second, a body full of them
    # ten times as long. Brackets and commas inside of texts count as well, which only matters beyond that.
    if len(data) > MAX_ELEMENTS and sum(map(data.count, (b",", b"[", b"{"))) > MAX_ELEMENTS:
        raise _bad(f"has more than {MAX_ELEMENTS} elements")
    text = _text(data)
    if not text or text.isspace():
        raise _bad("is empty; a JSON object is expected")
    try:
        with _without_collector():
            found = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _bad(f"is not valid JSON: {where}") from None
    except RecursionError:
        raise _bad("is nested too deeply") from None
    except ValueError:
        raise _bad("has a number of too many digits") from None
    if not isinstance(found, dict):
        raise _bad("is not a JSON object")
    if len(found) > MAX_FIELDS:
        raise _bad(f"has {len(found)} fields, more than {MAX_FIELDS}")
    return found


def _text(data: bytes | bytearray) -> str:
    """UTF-8, which may begin with a mark that says so."""
    encoding = json.detect_encoding(data)
    if not encoding.startswith("utf-8"):
        raise _bad(f"is {encoding.upper()}; JSON is sent as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(f"is not UTF-8 (at byte {error.start})") from None


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python would look for cycles again and again among what is being made, which takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def invalid(name: str, description: str) -> ApiError:
    return ApiError.of(Reason.INVALID_FIELD, description, field=name)


def unknown_field(path: str, meant: str = "") -> ApiError:
    """`meant` is the known field that is nearest to it, if one is."""
    return invalid(path, "is no field that this server knows" + (f"; did you mean {meant}?" if meant else ""))


def unsupported(name: str, description: str = "is not supported by this server") -> ApiError:
    return ApiError.of(Reason.UNSUPPORTED_FEATURE, description, field=name)


class Body:
    """Typed access to the fields of one object. null is the same as absent."""

    def __init__(self, data: Mapping[str, Any], prefix: str = "") -> None:
        self._data = data
        self._prefix = prefix
        self._seen: set[str] = set()
        self._refused: set[str] = set()

    def raw(self, name: str) -> Any:
        self._seen.add(name)
        return self._data.get(name)

    def path(self, name: str) -> str:
        return f"{self._prefix}{name}"

    @property
    def asked_for(self) -> frozenset[str]:
        """Names of all fields that were read, present or not."""
        return frozenset(self._seen)

    def refuse(self, instead: Mapping[str, str]) -> None:
        """Raises ApiError for a field that others have and that asks for something here. `instead`: the
        names of such fields, and what to do in their place."""
        self._refused.update(instead)
        for name, advice in instead.items():
            if self._data.get(name):
                raise unsupported(self.path(name), f"is not supported by this server; {advice}")

    def refuse_others(self, **instead: str) -> None:
        """Raises ApiError for a field that was not read. `instead`: names of other servers', and ours."""
        known = self._seen | self._refused
        # The first one ends it: an object may have a million.
        for name, value in self._data.items():
            if value is not None and name not in known:
                meant = instead.get(name) or nearest(name, self._seen)
                raise unknown_field(self.path(name[:MAX_NAME]), meant)

    def boolean(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, bool, "a boolean")
        return value

    def text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str, "a string")
        return value

    def integer(self, name: str, least: int = 0, most: int = (1 << 32) - 1) -> int | None:
        """A whole number; 5.0 is one as well, true is not."""
        value = self.raw(name)
        if value is None:
            return None
        return checked_integer(value, self.path(name), least, most)

    def number(self, name: str) -> float | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise invalid(self.path(name), "is not a number")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result):
            raise invalid(self.path(name), "is not a finite number")
        return result

    def array(self, name: str) -> list[Any] | None:
        value: list[Any] | None = self._typed(name, list, "an array")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        value: dict[str, Any] | None = self._typed(name, dict, "an object")
        return value

    def integers(self, name: str, max_length: int) -> list[int] | None:
        values = self._list(name, max_length)
        return None if values is None else integers(values, self.path(name))

    def texts(self, name: str, max_length: int) -> list[str] | None:
        values = self._list(name, max_length)
        if values is not None and not all(isinstance(value, str) for value in values):
            raise invalid(self.path(name), "is not an array of strings")
        return None if values is None else [checked_text(value, self.path(name)) for value in values]

    def _list(self, name: str, max_length: int) -> list[Any] | None:
        """Too long a list is not even looked at."""
        values = self.array(name)
        if values is not None and len(values) > max_length:
            raise invalid(self.path(name), f"{len(values)} entries are more than {max_length}")
        return values

    def _typed(self, name: str, kind: type, what: str) -> Any:
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, kind):
            raise invalid(self.path(name), f"is not {what}")
        return checked_text(str(value), self.path(name)) if kind is str else value


def checked_text(value: str, path: str) -> str:
    """JSON can spell half a surrogate pair; protobuf and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(path, "has a lone surrogate, which is not Unicode") from None
    return value


def integers(values: list[Any], path: str, most: int = (1 << 32) - 1) -> list[int]:
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value <= most:
            raise invalid(f"{path}[{index}]", f"is not a whole number in [0, {most}]")
    return values


def checked_integer(value: object, path: str, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(path, "is not a whole number")
    if not least <= value <= most:
        raise invalid(path, f"{value if abs(value) < 1 << 64 else 'it'} is not in [{least}, {most}]")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _bad(f"has {name}, which is not JSON")


def _bad(what: str) -> ApiError:
    return ApiError.of(Reason.INVALID_FIELD, f"the body {what}")


def _too_large() -> ApiError:
    return ApiError.of(Reason.REQUEST_TOO_LARGE, f"the body is larger than {MAX_BODY_BYTES} bytes")
