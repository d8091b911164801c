"""Bodies in other encodings than plain UTF-8: taken where that is safe, refused by name where it is not."""

import gzip
import json
import time
import zlib
from typing import Any

import httpx
import pytest

from coordinator.api.http.json import MAX_BODY_BYTES
from tests.coordinator.api.http_fakes import Http

BODY = {"prompt": [5], "max_tokens": 3}
TEXT = json.dumps(BODY).encode()
# At no time: the names of tests must be the same in every process.
ZIPPED = gzip.compress(TEXT, mtime=0)


async def post(data: bytes, encoding: str | None = None, **headers: str) -> httpx.Response:
    if encoding is not None:
        headers["content-encoding"] = encoding
    async with Http().client() as client:
        return await client.post("/v1/completions", content=data, headers=headers)


async def refused(data: bytes, encoding: str | None = None) -> tuple[int, str]:
    response = await post(data, encoding)
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return response.status_code, error["message"]


async def test_a_byte_order_mark() -> None:
    assert (await post(b"\xef\xbb\xbf" + TEXT)).status_code == 200
    assert (await post(gzip.compress(b"\xef\xbb\xbf" + TEXT), "gzip")).status_code == 200


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32-LE"),
        ("utf-32-be", "UTF-32-BE"),
    ],
)
async def test_other_character_encodings_are_named(codec: str, name: str) -> None:
    assert await refused(TEXT.decode().encode(codec)) == (400, f"the body is {name}; JSON is sent as UTF-8")


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "", "x/y;;="],
)
async def test_the_content_type_is_not_looked_at(kind: str) -> None:
    assert (await post(TEXT, **{"content-type": kind})).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "gzip, identity", " gzip "])
async def test_gzip(encoding: str) -> None:
    assert (await post(gzip.compress(TEXT), encoding)).status_code == 200


async def test_gzip_in_parts() -> None:
    assert (await post(gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]), "gzip")).status_code == 200


@pytest.mark.parametrize("encoding", ["identity", "", "Identity"])
async def test_nothing_of_an_encoding(encoding: str) -> None:
    assert (await post(TEXT, encoding)).status_code == 200


@pytest.mark.parametrize(
    "encoding", ["deflate", "br", "zstd", "compress", "gzip, gzip", "aws-chunked", "x" * 500]
)
async def test_encodings_that_there_are_not(encoding: str) -> None:
    response = await post(TEXT, encoding)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "gzip, identity"
    assert encoding[:60] in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        ZIPPED[:-1],
        ZIPPED[:12],
        ZIPPED + b"more",
        zlib.compress(TEXT),
        gzip.compress(b"") * 1000,
    ],
)
async def test_what_is_no_gzip(data: bytes) -> None:
    status, message = await refused(data, "gzip")
    assert status == 400
    assert message == "the body is not valid gzip, or not all of it"


@pytest.mark.parametrize("shape", ["one", "members", "nested"])
async def test_a_bomb_is_not_inflated(shape: str) -> None:
    """1 GiB in 1 MiB; in two members; and gzip within gzip, which is inflated once."""
    zeros = gzip.compress(bytes(1 << 20))
    whole = zlib.compressobj(9, wbits=31)
    bomb = b"".join(whole.compress(bytes(1 << 20)) for _ in range(64)) + whole.flush()
    data = {"one": bomb, "members": zeros * 15 + bomb, "nested": gzip.compress(bomb)}[shape]
    started = time.process_time()
    status, message = await refused(data, "gzip")
    if shape == "nested":
        assert status == 400
    else:
        assert (status, message) == (413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    assert time.process_time() - started < 5.0


async def test_exactly_the_limit_and_one_more() -> None:
    filler = MAX_BODY_BYTES - len(TEXT)
    assert (await post(gzip.compress(b" " * filler + TEXT, 1), "gzip")).status_code == 200
    assert (await post(gzip.compress(b" " * (filler + 1) + TEXT, 1), "gzip")).status_code == 413


async def test_inflated_bytes_count_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.api.http.json.MAX_BYTES_AT_ONCE", 1 << 20)
    http = Http()
    async with http.client() as client:
        data = gzip.compress(b" " * (2 << 20) + TEXT)
        full = await client.post("/v1/completions", content=data, headers={"content-encoding": "gzip"})
        assert full.status_code == 429
        again = await client.post(
            "/v1/completions", content=gzip.compress(TEXT), headers={"content-encoding": "gzip"}
        )
        assert again.status_code == 200, "given back"
