"""A Hugging Face hub on this machine: as much of its API as a download needs, over the files of a folder."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/?]+)")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/?]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class FakeHub(ThreadingHTTPServer):
    """Has one model. `gated`: only for callers with the token. `asked`: files that were downloaded."""

    daemon_threads = True

    def __init__(self, repository: str, folder: Path, token: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.folder, self.token = repository, folder, token
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def serving(repository: str, folder: Path, token: str | None = None) -> Iterator[FakeHub]:
    hub = FakeHub(repository, folder, token)
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        for form, answer in ((_INFO, self._info), (_TREE, self._tree), (_FILE, self._file)):
            found = form.match(self.path)
            if found is None:
                continue
            if found["repo"] != hub.repository:
                return self._refuse(404, "RepoNotFound")
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._refuse(401, "GatedRepo")
            if found["revision"] not in ("main", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            return answer(found)
        return self._refuse(404, "EntryNotFound")

    def _info(self, _found: re.Match[str]) -> None:
        siblings = [{"rfilename": name} for name in self.server.names()]
        self._say({"_id": "1", "id": self.server.repository, "sha": COMMIT, "siblings": siblings})

    def _tree(self, _found: re.Match[str]) -> None:
        self._say([self._entry(name) for name in self.server.names()])

    def _entry(self, name: str) -> dict[str, Any]:
        data = (self.server.folder / name).read_bytes()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _git_sum(data)}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, found: re.Match[str]) -> None:
        path = self.server.folder / found["file"]
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        data = path.read_bytes()
        is_large = path.suffix == ".safetensors"
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest() if is_large else _git_sum(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.server.asked.append(found["file"])
            self.wfile.write(data)
        return None

    def _say(self, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _git_sum(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
