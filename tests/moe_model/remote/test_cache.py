"""The cache's bounds: what goes first, what stays, and that readers get the right bytes all the while."""

import errno
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from moe_model.errors import CheckpointError, ConfigError
from moe_model.files.piece_file import PieceFile
from moe_model.remote import block_file
from moe_model.remote.block_file import OpenBlocks
from moe_model.remote.cache import CacheFolder
from moe_model.remote.listing import BLOCK_BYTES
from moe_model.remote.mirror import Mirror, open_mirror
from moe_model.remote.settings import CACHE, CACHE_BYTES, cache_of
from tests.moe_model.remote.sources import MemorySource, listing_of

MIB = 1 << 20
# Of sums, locks, small files and folders.
OTHER = 64 << 10


@pytest.fixture
def source() -> MemorySource:
    random = Random(0)
    files = {f"{name}.safetensors": random.randbytes(2 * MIB) for name in "abc"}
    return MemorySource({**files, "config.json": b"{}"})


def opened(source: MemorySource, cache: CacheFolder, key: str) -> Mirror:
    return open_mirror(key, listing_of(source.files), source, cache, name="m", location="memory://m")


def read(mirror: Mirror, source: MemorySource, *names: str) -> None:
    for name in (f"{name}.safetensors" for name in names):
        assert PieceFile(mirror.path / name).read(0, 2 * MIB) == source.files[name]


def is_kept(mirror: Mirror, name: str) -> bool:
    return (mirror.path / f"{name}.safetensors").stat().st_blocks * 512 >= 2 * MIB


def test_unused_mirrors_go_first_the_one_opened_longest_ago(source: MemorySource, tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 5 * MIB)
    for key in ("mirror-1", "mirror-2"):
        with closing(opened(source, cache, key)) as mirror:
            read(mirror, source, "a")
    os.utime(tmp_path / "mirror-1" / "lock", ns=(0, 1))
    with closing(opened(source, cache, "mirror-3")) as mirror:
        read(mirror, source, "a")
        assert is_kept(mirror, "a")
        assert sorted(path.name for path in tmp_path.glob("mirror-*")) == ["mirror-2", "mirror-3"]
        assert cache.used_bytes() <= 5 * MIB


def test_a_mirror_in_use_stays_and_its_oldest_blocks_go(source: MemorySource, tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 3 * MIB)
    with (
        closing(opened(source, cache, "mirror-1")) as first,
        closing(opened(source, cache, "mirror-2")) as second,
    ):
        read(first, source, "a")
        read(second, source, "a", "b", "c")
        assert cache.used_bytes() <= 3 * MIB
        assert first.path.exists()
        assert not is_kept(first, "a")
        assert (first.path / "config.json").read_bytes() == b"{}"
        read(first, source, "a", "c")


def test_what_has_no_room_at_all_is_read_through(
    source: MemorySource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheFolder(tmp_path, OTHER)
    with closing(opened(source, cache, "mirror-1")) as mirror:
        read(mirror, source, "a", "a", "b")
        assert not is_kept(mirror, "a")
        assert cache.used_bytes() <= OTHER
    assert [record.message for record in caplog.records] == [
        f"cache {tmp_path}: is full of what is in use: what is fetched is not kept"
    ]


def test_small_files_need_their_room(source: MemorySource, tmp_path: Path) -> None:
    source.files["tokenizer.json"] = bytes(range(256)) * 4000
    with pytest.raises(CheckpointError, match=r"has no room for tokenizer.json: EXPERTMESH_CACHE_BYTES says"):
        opened(source, CacheFolder(tmp_path, OTHER), "mirror-1")
    # Nothing of it is in use.
    with closing(opened(source, CacheFolder(tmp_path, 4 * MIB), "mirror-2")) as mirror:
        read(mirror, source, "a")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_is_full_or_fails(
    source: MemorySource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    """Bytes of tensors are used all the same; small files, which are read from the disk, are an error."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    cache = CacheFolder(tmp_path, 100 * MIB)
    with closing(opened(source, cache, "mirror-1")) as mirror:
        monkeypatch.setattr(OpenBlocks, "keep", fail)
        read(mirror, source, "a", "b")
    assert [record.message for record in caplog.records] == [
        f"cache {tmp_path}: {os.strerror(code)}: what is fetched is not kept"
    ]
    with pytest.raises(CheckpointError, match=f"{os.strerror(code)}: EXPERTMESH_CACHE names a folder"):
        opened(source, cache, "mirror-2")


def test_a_file_system_without_holes(
    source: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_file, "_KEEP_SIZE", 1 << 20)
    with closing(opened(source, CacheFolder(tmp_path, 100 * MIB), "mirror-1")) as mirror:
        file = PieceFile(mirror.path / "a.safetensors")
        read(mirror, source, "a")
        file.forget()
        assert (mirror.path / "a.safetensors").stat().st_blocks == 0
        assert (mirror.path / "a.safetensors").stat().st_size == 2 * MIB
        read(mirror, source, "a")


def test_the_share_of_the_disk(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert CacheFolder(tmp_path).max_bytes(0) == pytest.approx(0.8 * free, rel=0.05)


HOLD = """
import sys
from pathlib import Path
from moe_model.remote.cache import CacheFolder
held = CacheFolder(Path(sys.argv[1])).hold("mirror-1")
print("held", flush=True)
sys.stdin.read()
"""


def test_what_another_process_has_open_stays_until_it_dies(source: MemorySource, tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path, 3 * MIB)
    with closing(opened(source, cache, "mirror-1")) as mirror:
        read(mirror, source, "a")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with closing(opened(source, cache, "mirror-2")) as mirror:
            read(mirror, source, "a", "b")
        assert (tmp_path / "mirror-1").exists()
        other.kill()
    with closing(opened(source, cache, "mirror-3")) as mirror:
        read(mirror, source, "a", "b")
    assert not (tmp_path / "mirror-1").exists()


def test_what_an_evictor_has_left_behind_goes(source: MemorySource, tmp_path: Path) -> None:
    (tmp_path / ".evicted-0").mkdir()
    (tmp_path / ".evicted-0" / "file").write_bytes(bytes(3 * MIB))
    with closing(opened(source, CacheFolder(tmp_path, 3 * MIB), "mirror-1")) as mirror:
        read(mirror, source, "a")
    assert not (tmp_path / ".evicted-0").exists()


def test_a_folder_of_another_user_is_refused(
    source: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror-1").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CheckpointError, match="mirror-1: belongs to another user: EXPERTMESH_CACHE names"):
        opened(source, CacheFolder(tmp_path), "mirror-1")


def test_a_link_in_the_place_of_a_folder_is_refused(source: MemorySource, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mirror-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="mirror-1: belongs to another user"):
        opened(source, CacheFolder(tmp_path), "mirror-1")


@pytest.mark.parametrize(
    ("given", "num_bytes"),
    [("1", 1), ("200000000000", 200_000_000_000), ("200GiB", 200 << 30), (" 3 MiB", 3 << 20)],
)
def test_settings(tmp_path: Path, given: str, num_bytes: int) -> None:
    cache = cache_of({CACHE: str(tmp_path / "link" / ".."), CACHE_BYTES: given})
    assert (cache.path, cache.max_bytes(0)) == (tmp_path, num_bytes)


@pytest.mark.parametrize("given", ["0", "-1", "many", "3MB", "1.5GiB", "9" * 16])
def test_settings_that_are_none(given: str) -> None:
    with pytest.raises(ConfigError, match=r"EXPERTMESH_CACHE_BYTES: .* is not a number of bytes"):
        cache_of({CACHE: "somewhere", CACHE_BYTES: given})


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_of({}).path == tmp_path / ".cache" / "expertmesh"


def test_blocks_are_whole_pages() -> None:
    """So a hole of one frees all of it."""
    assert BLOCK_BYTES % os.sysconf("SC_PAGE_SIZE") == 0
