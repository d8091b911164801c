"""A folder of each format behind a server, and a cache of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_model.remote.settings import CACHE
from tests.models import write_checkpoint
from tests.moe_model.remote.remote_folders import close_all, write_published
from tests.ranged_http import RangedServer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    yield tmp_path / "cache"
    close_all()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "www").mkdir()
    return write_published(tmp_path / "www" / "my model")


@pytest.fixture(params=["own", "hugging_face"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "hugging_face":
        found: Path = request.getfixturevalue("published")
        return found
    (tmp_path / "www").mkdir()
    return write_checkpoint(tmp_path / "www" / "my model")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangedServer]:
    with RangedServer(tmp_path / "www") as server:
        yield server


@pytest.fixture
def url(server: RangedServer) -> str:
    return f"{server.url}/my%20model"
