"""Bodies that come compressed: gzip, and no other encoding. Knows no request."""

import zlib
from collections.abc import Sequence

from coordinator.api.shared.errors import ApiError, Reason
from expertmesh.shown_text import quoted_ascii

ACCEPTED = "gzip, identity"
# Of one body; a file may be put together of several, and each costs something even where it is empty.
MAX_MEMBERS = 16
_GZIP_BITS = 16 + zlib.MAX_WBITS


def is_compressed(encodings: Sequence[str]) -> bool:
    """By the values of a request's Content-Encoding headers. Raises UNSUPPORTED_ENCODING."""
    applied = [word.strip().lower() for value in encodings for word in value.split(",")]
    applied = [word for word in applied if word not in ("", "identity")]
    if not applied:
        return False
    if len(applied) > 1 or applied[0] not in ("gzip", "x-gzip"):
        named = quoted_ascii(", ".join(applied))
        raise ApiError.of(
            Reason.UNSUPPORTED_ENCODING, f"content-encoding: {named} is not supported; send gzip, or none"
        )
    return True


def inflated(data: bytes, most: int) -> bytes | None:
    """The content, or None where it is more than `most` bytes, of which no more are made. Raises ApiError."""
    content = bytearray()
    for _ in range(MAX_MEMBERS):
        inflater = zlib.decompressobj(_GZIP_BITS)
        try:
            content += inflater.decompress(data, most + 1 - len(content))
        except zlib.error:
            break
        if len(content) > most:
            return None
        if not inflater.eof:
            break
        data = inflater.unused_data
        if not data:
            return bytes(content)
    raise ApiError.of(Reason.INVALID_FIELD, "the body is not valid gzip, or not all of it")
