"""Origins: whose web pages may use the HTTP API from a browser. What browsers are told is elsewhere."""

import re
from collections.abc import Iterable

from moe_model.errors import ConfigError

ANY = "*"
_ORIGIN = re.compile(
    r"https?://(?:[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
)


def origins_of(lists: Iterable[str]) -> tuple[str, ...]:
    """The origins of comma-separated lists, as browsers spell them. Raises ConfigError."""
    named = [each.strip().lower() for text in lists for each in text.split(",")]
    for origin in named:
        found = _ORIGIN.fullmatch(origin)
        if origin not in ("", ANY) and (found is None or int(found["port"] or 1) > 65535):
            raise ConfigError(
                f"--allowed-origins: {origin!a} is not an origin, such as https://app.example or "
                "http://localhost:3000; * is every origin"
            )
    return tuple(dict.fromkeys(filter(None, named)))
