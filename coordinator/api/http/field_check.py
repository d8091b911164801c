"""No field of a body is dropped in silence: it is built, refused by name, harmless, or told to the caller."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from coordinator.api.http.fields import BUILT, HARMLESS, OF_THINKING, Route, is_neutral, nearest, refusal
from coordinator.api.http.json import MAX_NAME, unknown_field, unsupported
from expertmesh.shown_text import printable

logger = logging.getLogger(__name__)

WARNINGS_HEADER = "x-expertmesh-warnings"
MAX_WARNINGS, MAX_HEADER = 8, 1024
MAX_LOGGED_NAMES = 256
# Azure's clients send it with everything.
_HARMLESS_IN_QUERIES = frozenset({"api-version"})


class FieldCheck:
    """`strict`: a field that this server does not know is refused as well. Each is in the log once."""

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def body(self, data: Mapping[str, Any], route: Route) -> list[str]:
        """A warning for every field that is passed over. Raises ApiError naming one that is refused."""
        built = BUILT[route]
        if built.issuperset(data):
            return []
        unknown = []
        for name in data.keys() - built - HARMLESS - OF_THINKING:
            value = data[name]
            refused = refusal(name, route)
            if refused is None:
                unknown += [] if value is None else [name]
            elif not is_neutral(refused, value) and not _is_excused(name, data):
                raise unsupported(name, _refusal_text(refused.instead))
        return self._passed_over(sorted(unknown), built)

    def query(self, names: Iterable[str]) -> list[str]:
        """The same for the parameters of a URL: no route has any."""
        return self._passed_over([f"?{name}" for name in sorted(set(names) - _HARMLESS_IN_QUERIES)], ())

    def _passed_over(self, names: Sequence[str], known: Iterable[str]) -> list[str]:
        if not names:
            return []
        if self._strict:
            raise unknown_field(names[0][:MAX_NAME], nearest(names[0], known))
        self._log(names[:MAX_WARNINGS])
        return list(_warnings(names, known))

    def _log(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._logged and len(self._logged) < MAX_LOGGED_NAMES:
                self._logged.add(name)
                logger.info("ignored the unknown field %s", ascii(name[:MAX_NAME]))


def warnings_header(warnings: Sequence[str]) -> str:
    """One line of ASCII; bounded, for names come from anywhere."""
    return "; ".join(warnings).encode("ascii", "backslashreplace").decode()[:MAX_HEADER]


def _warnings(names: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    for name in names[:MAX_WARNINGS]:
        shown = printable(name[:MAX_NAME])
        meant = nearest(name, known)
        yield f"{shown}: unknown, passed over" + (f"; did you mean {meant}?" if meant else "")
    if len(names) > MAX_WARNINGS:
        yield f"{len(names) - MAX_WARNINGS} more unknown fields, passed over"


def _refusal_text(instead: str) -> str:
    return "is not supported by this server" + (f"; {instead}" if instead else "")


def _is_excused(name: str, data: Mapping[str, Any]) -> bool:
    """Values that ask for nothing because of another field's."""
    if name != "best_of":
        return False
    n = data.get("n")
    return bool(data[name] == (1 if n is None else n))
