"""Checkpoints by URL, over a real HTTP server and from a disk: the same as the folder, or a clear error."""

import logging
import os
import re
import threading
from pathlib import Path

import pytest

from moe_model.checkpoint.manifest import MANIFEST, SHARED
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, ConfigError, HaltedError
from moe_model.halt import Halt
from moe_model.remote.open_url import open_url
from moe_model.remote.url import CheckpointUrl
from moe_model.remote.url_source import Patience, UrlSource
from tests.models import write_checkpoint
from tests.moe_model.remote.remote_folders import assert_same, close_all, tensor_file
from tests.ranged_http import RangedServer


def test_over_http(url: str, server: RangedServer, folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url(url))
    assert (checkpoint.name, checkpoint.location) == ("my model", url)
    assert_same(checkpoint, folder)
    assert open_url(url) == checkpoint.path
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert server.num_bytes < size + 10_000
    fingerprint = checkpoint.fingerprint
    close_all()
    server.forget()
    again = Checkpoint.open(open_url(url))
    assert again.fingerprint == fingerprint
    assert_same(again, folder)
    # Looks, and what the listing is made of.
    assert server.num_bytes < 20_000


def test_from_a_disk(folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url(f"file://{folder}"))
    assert checkpoint.name == "my model"
    assert_same(checkpoint, folder)


def test_a_file_that_has_been_replaced(url: str, folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url(url))
    path = tensor_file(folder)
    path.write_bytes(path.read_bytes()[:-4] + b"1234")
    with pytest.raises(CheckpointError, match=r"has changed|SHA-256 is not"):
        assert_same(checkpoint, folder)
    if checkpoint.format == "hugging_face":
        # One that opens it now gets the new one, whatever is in the cache of the old.
        close_all()
        assert_same(Checkpoint.open(open_url(url)), folder)


def test_bytes_that_were_damaged_on_their_way(tmp_path: Path, url: str) -> None:
    """The sum of a whole file shows it, after its blocks were kept: they are fetched again."""
    (tmp_path / "www").mkdir()
    path = write_checkpoint(tmp_path / "www" / "my model") / SHARED
    right = path.read_bytes()
    checkpoint = Checkpoint.open(open_url(url))
    path.write_bytes(right[:-4] + bytes(4))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="SHA-256 is not the manifest's"):
            checkpoint.read_shared()
    path.write_bytes(right)
    checkpoint.read_shared()


def test_from_a_disk_a_file_that_has_been_replaced(folder: Path) -> None:
    checkpoint = Checkpoint.open(open_url(f"file://{folder}"))
    path = tensor_file(folder)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(CheckpointError, match=rf"{path.name}: has changed since it was opened"):
        assert_same(checkpoint, folder)


def test_a_server_without_ranges(url: str, server: RangedServer, published: Path) -> None:
    server.has_ranges = False
    with pytest.raises(CheckpointError, match="json: the server sends whole files and no ranges of them"):
        open_url(url)


def test_a_server_that_fails_and_mends(
    url: str, server: RangedServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.codes = [503, 429]
    server.num_cut = 2
    with caplog.at_level(logging.WARNING):
        assert_same(Checkpoint.open(open_url(url)), folder)
    assert re.search("json: the server answers (503|429); it is tried again", caplog.text)
    assert caplog.text.count("it is tried again") >= 2


@pytest.mark.parametrize("code", [401, 403])
def test_credentials_that_are_wrong(url: str, server: RangedServer, published: Path, code: int) -> None:
    server.codes = [code] * 30
    secret = url.replace("://", "://me:hunter2@") + "?signature=s3cret"
    with pytest.raises(CheckpointError, match=f"the server answers {code}: it wants credentials") as error:
        open_url(secret)
    assert "hunter2" not in str(error.value)
    assert "s3cret" not in str(error.value)
    assert "authorization" in {name.lower() for name in server.headers[-1]}


def test_a_query_that_signs_all_of_a_folder(url: str, server: RangedServer, folder: Path) -> None:
    server.wanted_query = "sig=a%2Fb%3D"
    assert_same(Checkpoint.open(open_url(f"{url}?{server.wanted_query}")), folder)


def test_an_answer_that_does_not_come(url: str, server: RangedServer, published: Path) -> None:
    source = UrlSource(CheckpointUrl.parse(url), Patience(one=0.2, all=0.5, pause=0.05))
    server.may_send.clear()
    with pytest.raises(CheckpointError, match=r"does not answer within 0 s; tried \d times in 0.5 s"):
        source.look(["config.json", MANIFEST], Halt())


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    source = UrlSource(CheckpointUrl.parse("http://127.0.0.1:9/model"), Patience(all=0.3, pause=0.05))
    with pytest.raises(CheckpointError, match=r"127.0.0.1:9/model/config.json: .*tried \d times in 0.3 s"):
        source.look(["config.json"], Halt())


def test_halted(url: str, server: RangedServer, published: Path) -> None:
    halt = Halt()
    server.may_send.clear()
    timer = threading.Timer(0.1, halt.set)
    timer.start()
    with pytest.raises(HaltedError):
        open_url(url, halt=halt)
    timer.join()


def test_no_checkpoint(server: RangedServer, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither a manifest.json nor a config.json: give the URL"):
        open_url(server.url)
    with pytest.raises(CheckpointError, match=r"nor a config.json, it has my model/.* and \d+ more"):
        open_url(f"file://{folder.parent}")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        open_url(f"file://{folder}-gone")


def test_a_file_that_is_missing(url: str, folder: Path) -> None:
    name = tensor_file(folder).name
    tensor_file(folder).unlink()
    for given in (url, f"file://{folder}"):
        with pytest.raises(CheckpointError, match=name):
            Checkpoint.open(open_url(given)).verify()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ftp://host/model", "'ftp' is not one of file, gs, http, https, s3"),
        ("http:///model", "has to name a host or a bucket"),
        ("file://models/mine", "has to name a path"),
        ("s3://bucket/model?x=1", "a folder has no # and, but with http, no"),
        ("https://host/model#main", "a folder has no #"),
        ("http://[::1/model", "Invalid IPv6 URL"),
    ],
)
def test_urls_that_are_none(given: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_url(given)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"gs://bucket/model: needs more packages: pip install 'expertmesh\[gcs\]'"
    ):
        open_url("gs://bucket/model")


def test_a_server_that_names_no_versions(url: str, server: RangedServer, folder: Path) -> None:
    server.has_versions = False
    assert_same(Checkpoint.open(open_url(url)), folder)
