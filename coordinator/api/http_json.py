"""Reading JSON bodies: bounded, strict about types, and naming the parameter at fault.

What a field means is not known here.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from coordinator.api.errors import ApiError, Reason

MAX_BODY_BYTES = 16 << 20
MAX_DEPTH = 128


async def read_object(request: Request) -> dict[str, Any]:
    """The body. Raises ApiError; reads no more than is allowed."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > MAX_BODY_BYTES:
                raise _too_large()
    except ClientDisconnect:
        raise invalid("body", "ended before it was complete") from None
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError.of(Reason.INVALID_FIELD, "the body is not valid JSON") from None
    if not isinstance(found, dict):
        raise ApiError.of(Reason.INVALID_FIELD, "the body is not a JSON object")
    return found


def invalid(name: str, description: str) -> ApiError:
    return ApiError.of(Reason.INVALID_FIELD, description, field=name)


def unsupported(name: str, description: str = "is not supported by this server") -> ApiError:
    return ApiError.of(Reason.UNSUPPORTED_FEATURE, description, field=name)


class Body:
    """Typed access to the fields of one object. null is the same as absent."""

    def __init__(self, data: Mapping[str, Any], prefix: str = "") -> None:
        self._data = data
        self._prefix = prefix
        self._seen: set[str] = set()

    def raw(self, name: str) -> Any:
        self._seen.add(name)
        return self._data.get(name)

    def path(self, name: str) -> str:
        return f"{self._prefix}{name}"

    @property
    def unread(self) -> set[str]:
        """Fields that nobody has asked for."""
        return {str(name) for name in self._data} - self._seen

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

    def integers(self, name: str, most: int = (1 << 32) - 1) -> list[int] | None:
        values = self.array(name)
        return None if values is None else integers(values, self.path(name), most)

    def texts(self, name: str) -> list[str] | None:
        values = self.array(name)
        if values is not None and not all(isinstance(value, str) for value in values):
            raise invalid(self.path(name), "is not an array of strings")
        return None if values is None else [checked_text(value, self.path(name)) for value in values]

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
    raise ValueError(name)


def _too_large() -> ApiError:
    return ApiError.of(Reason.REQUEST_TOO_LARGE, f"the body is larger than {MAX_BODY_BYTES} bytes")
