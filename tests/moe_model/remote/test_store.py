"""Checkpoints in an object store: a real S3 server on this machine, and the library that speaks to it."""

import importlib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.remote.open_url import open_url
from tests.moe_model.remote.remote_folders import assert_same, tensor_file

pytestmark = pytest.mark.store


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket that has the folder; the environment leads to it, as it would lead to any other store."""
    server = importlib.import_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    # What the servers of a process hold, they hold together.
    request = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(request).close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = importlib.import_module("s3fs").S3FileSystem(skip_instance_cache=True)
    files.mkdir("models")
    files.put(str(folder), "models/my model", recursive=True)
    yield files
    server.stop()
    files.clear_instance_cache()


def test_from_a_bucket(store: Any, folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url("s3://models/my model"))
    assert (checkpoint.name, checkpoint.location) == ("my model", "s3://models/my model")
    assert_same(checkpoint, folder)


def test_an_object_that_has_been_replaced(store: Any, folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url("s3://models/my model"))
    path = tensor_file(folder)
    name = path.relative_to(folder).as_posix()
    store.pipe(f"models/my model/{name}", path.read_bytes()[:-4] + b"1234")
    with pytest.raises(CheckpointError, match=f"{name}: has changed since it was opened"):
        checkpoint.verify()


@pytest.mark.parametrize("url", ["s3://models/nothing", "s3://none/model", "s3://models"])
def test_what_is_not_there(store: Any, url: str) -> None:
    with pytest.raises(CheckpointError, match=f"{url}: "):
        open_url(url)


def test_an_object_that_is_gone(store: Any, folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url("s3://models/my model"))
    store.rm(f"models/my model/{tensor_file(folder).relative_to(folder).as_posix()}")
    with pytest.raises(CheckpointError, match="s3://models/my model: "):
        checkpoint.verify()
