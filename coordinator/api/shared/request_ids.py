"""What a request is called: its own id, which is one of a kind here, and the ids that came with it.

What a caller or a proxy puts into a header may be anything, and the same for all calls of one transaction: it
is repeated and logged, and nothing depends on it.
"""

from collections.abc import Iterable, Mapping

from expertmesh.shown_text import visible_ascii

# An answer's header with the request's own id; the other one has it where no id came with the call.
OWN_ID = "x-expertmesh-request-id"
REQUEST_ID_HEADER = "x-request-id"
GIVEN_IDS = (REQUEST_ID_HEADER, "x-correlation-id")
MAX_GIVEN_CHARS = 256


def given_ids(headers: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """The ids among the headers of a call, cut to what any client may be shown: visible ASCII and spaces.
    Of a header that came several times, the first that says something."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name in GIVEN_IDS and name not in found:
            text = _visible(value)
            if text:
                found[name] = text
    return found


def id_headers(request_id: str, given: Mapping[str, str]) -> dict[str, str]:
    """What every answer is marked with."""
    return {OWN_ID: request_id, REQUEST_ID_HEADER: request_id, **given}


def _visible(value: str | bytes) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return visible_ascii(text[:MAX_GIVEN_CHARS]).strip()
