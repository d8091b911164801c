"""When the first request of a tool has come, as the server counts it: tools say so too late, or never."""

import urllib.request
from collections.abc import Callable
from contextlib import suppress

# Counters and gauges of which one changes with the first request.
WATCHED = (
    "expertmesh_num_requests_running",
    "expertmesh_num_requests_waiting",
    "expertmesh_prompt_tokens_total",
)


class FirstRequest:
    """Calls `on_begin` once. The server is asked only until then, so that a load is not disturbed."""

    def __init__(self, http_address: str, on_begin: Callable[[], None]) -> None:
        self._url = f"http://{http_address}/metrics"
        self._on_begin = on_begin
        self._before = self._found()

    def has_come(self) -> bool:
        """Whether it has; False as well where the server does not answer."""
        found = self._found()
        if not found or found == self._before:
            return False
        if not self._before:
            self._before = found
            return False
        self._on_begin()
        return True

    def _found(self) -> list[str]:
        with suppress(OSError), urllib.request.urlopen(self._url, timeout=5) as answer:
            lines = answer.read().decode(errors="replace").splitlines()
            return [line for line in lines if line.startswith(WATCHED)]
        return []
