"""A real HTTP server over a folder, with ranges, that counts what it sends and can misbehave on request."""

import re
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class RangedServer:
    """`num_bytes`: of bodies that it has sent, `asked` by path. What it can do wrong: send no ranges; answer
    the next requests with these codes; break off in the middle of the next bodies; send nothing until it is
    told to; send no versions; want a query; make a pause after each tenth of a body;
    answer otherwise than 404 where there is nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = 0
        self.asked: Counter[str] = Counter()
        self.has_ranges, self.has_versions, self.wanted_query = True, True, ""
        self.codes: list[int] = []
        self.num_cut = 0
        self.pause = 0.0
        self.code_of_nothing = 404
        self.may_send = threading.Event()
        self.may_send.set()
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, path: str, size: int) -> None:
        with self._lock:
            self.num_bytes += size
            self.asked[path] += 1

    def forget(self) -> None:
        """Counts from 0 on."""
        with self._lock:
            self.num_bytes = 0
            self.asked.clear()

    def next_code(self) -> int | None:
        with self._lock:
            return self.codes.pop(0) if self.codes else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.may_send.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = False
                server.answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """The test's output is for the test."""

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.headers.append(dict(request.headers))
        parts = urlsplit(request.path)
        path = self.folder / unquote(parts.path).lstrip("/")
        code = self.next_code()
        if self.wanted_query and parts.query != self.wanted_query:
            code = 403
        elif not path.is_file():
            code = self.code_of_nothing
        if code is not None:
            _answer(request, code, {}, b"")
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{path.stat().st_mtime_ns}-{len(data)}"'} if self.has_versions else {}
        found = _RANGE.fullmatch(request.headers.get("Range", "")) if self.has_ranges else None
        if found is None:
            self.count(parts.path, len(data))
            _answer(request, 200, headers, data)
            return
        begin, end = int(found[1]), min(int(found[2]) + 1, len(data))
        if begin >= len(data):
            _answer(request, 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b"")
            return
        self.may_send.wait()
        body = data[begin:end]
        self.count(parts.path, len(body))
        headers |= {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        with self._lock:
            # Of one byte there is no middle: such an answer is only looked at.
            is_cut = self.num_cut > 0 and len(body) > 1
            self.num_cut -= is_cut
        _answer(request, 206, headers, body, is_cut=is_cut, pause=self.pause)


def _answer(
    request: BaseHTTPRequestHandler,
    code: int,
    headers: dict[str, str],
    body: bytes,
    *,
    is_cut: bool = False,
    pause: float = 0.0,
) -> None:
    request.send_response(code)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    body = body[: len(body) // 2] if is_cut else body
    step = max(1, -(-len(body) // 10)) if pause else max(1, len(body))
    for begin in range(0, len(body), step):
        # One that has left does not wait for the rest.
        with suppress(ConnectionError):
            request.wfile.write(body[begin : begin + step])
        threading.Event().wait(pause)
    request.close_connection = is_cut
