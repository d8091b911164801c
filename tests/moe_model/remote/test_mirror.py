"""Mirrors over a source in memory: what is read is what the source has, and each block is fetched once."""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, HaltedError
from moe_model.files.mirrored import mirrored_file
from moe_model.files.piece_file import PieceFile
from moe_model.halt import Halt
from moe_model.remote.block_file import block_sums
from moe_model.remote.cache import CacheFolder
from moe_model.remote.listing import BLOCK_BYTES, SUM_BYTES, Listing, RemoteFile
from moe_model.remote.mirror import Mirror, open_mirror
from tests.moe_model.remote.sources import KEY, MemorySource, mirror_of

WEIGHTS = "a/weights.safetensors"
SIZE = 5 * BLOCK_BYTES + 1000


@pytest.fixture
def source() -> MemorySource:
    random = Random(0)
    return MemorySource({WEIGHTS: random.randbytes(SIZE), "config.json": b"{}", "empty.json": b""})


@pytest.fixture
def mirror(source: MemorySource, tmp_path: Path) -> Iterator[Mirror]:
    with closing(mirror_of(source, tmp_path)) as mirror:
        source.asked.clear()
        yield mirror


def test_small_files_are_whole_and_others_sparse(mirror: Mirror, source: MemorySource) -> None:
    assert (mirror.path / "config.json").read_bytes() == b"{}"
    assert (mirror.path / "empty.json").read_bytes() == b""
    status = (mirror.path / WEIGHTS).stat()
    assert (status.st_size, status.st_blocks) == (SIZE, 0)
    assert mirrored_file(mirror.path / "config.json") is None
    assert source.asked == []


@pytest.mark.parametrize(
    ("offset", "size", "blocks"),
    [
        (0, 8, [(0, 1)]),
        (BLOCK_BYTES - 1, 2, [(0, 2)]),
        (BLOCK_BYTES, BLOCK_BYTES, [(1, 2)]),
        (SIZE - 1, 1, [(5, 6)]),
        (0, SIZE, [(0, 6)]),
        (7, 0, []),
    ],
)
def test_only_the_blocks_of_a_read_are_fetched_and_once(
    mirror: Mirror, source: MemorySource, offset: int, size: int, blocks: list[tuple[int, int]]
) -> None:
    file = PieceFile(mirror.path / WEIGHTS)
    for _ in range(2):
        assert file.read(offset, size) == source.files[WEIGHTS][offset : offset + size]
    wanted = [(WEIGHTS, begin * BLOCK_BYTES, min(end * BLOCK_BYTES, SIZE)) for begin, end in blocks]
    assert source.asked == wanted
    assert mirror.num_fetched == 2 + source.num_bytes


def test_another_process_fetches_nothing_again(mirror: Mirror, source: MemorySource, tmp_path: Path) -> None:
    PieceFile(mirror.path / WEIGHTS).read(0, SIZE)
    source.is_down = True
    with closing(mirror_of(source, tmp_path)) as again:
        assert PieceFile(again.path / WEIGHTS).read(0, SIZE) == source.files[WEIGHTS]


def test_beyond_the_end(mirror: Mirror) -> None:
    with pytest.raises(CheckpointError, match=f"has {SIZE} bytes"):
        PieceFile(mirror.path / WEIGHTS).read(SIZE - 1, 2)


@pytest.mark.parametrize("where", ["data", "sums"])
def test_a_damaged_block_is_fetched_again(mirror: Mirror, source: MemorySource, where: str) -> None:
    file = PieceFile(mirror.path / WEIGHTS)
    file.read(0, SIZE)
    source.asked.clear()
    path = mirror.path / WEIGHTS if where == "data" else mirror.path.parent / "sums" / WEIGHTS
    with path.open("r+b") as opened:
        opened.seek(2 * (BLOCK_BYTES if where == "data" else SUM_BYTES))
        opened.write(b"rot")
    assert file.read(0, SIZE) == source.files[WEIGHTS]
    assert source.asked == [(WEIGHTS, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES)]


def test_a_block_without_its_sum_was_not_finished(mirror: Mirror, source: MemorySource) -> None:
    """As a process leaves it that was killed between the two."""
    file = PieceFile(mirror.path / WEIGHTS)
    with (mirror.path / WEIGHTS).open("r+b") as opened:
        opened.write(source.files[WEIGHTS][:BLOCK_BYTES])
    assert file.read(0, 10) == source.files[WEIGHTS][:10]
    assert source.num_bytes == BLOCK_BYTES


@pytest.mark.parametrize("change", [0, -1, 1], ids=["gone", "shorter", "longer"])
def test_files_of_another_size_are_mended(
    mirror: Mirror, source: MemorySource, tmp_path: Path, change: int
) -> None:
    PieceFile(mirror.path / WEIGHTS).read(0, SIZE)
    os.truncate(mirror.path / WEIGHTS, SIZE + change if change else 0)
    assert PieceFile(mirror.path / WEIGHTS).read(0, SIZE) == source.files[WEIGHTS]
    with closing(mirror_of(source, tmp_path)) as again:
        assert (again.path / WEIGHTS).stat().st_size == SIZE


def test_a_cache_that_is_removed_meanwhile(mirror: Mirror, source: MemorySource) -> None:
    """It is read through."""
    (mirror.path / WEIGHTS).unlink()
    assert PieceFile(mirror.path / WEIGHTS).read(5, 10) == source.files[WEIGHTS][5:15]


class TwoSums:
    def __init__(self, sums: bytes) -> None:
        self.sums = sums

    def of(self, name: str, first: int, count: int) -> bytes | None:
        return self.sums[first * SUM_BYTES : (first + count) * SUM_BYTES] if name == WEIGHTS else None


def test_bytes_without_the_sum_they_should_have(source: MemorySource, tmp_path: Path) -> None:
    right = source.files[WEIGHTS]
    known = TwoSums(block_sums(memoryview(right)))
    wrong = bytearray(right)
    wrong[3 * BLOCK_BYTES] ^= 1
    source.files[WEIGHTS] = bytes(wrong)
    with closing(mirror_of(source, tmp_path, sums=known)) as mirror:
        file = PieceFile(mirror.path / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"bytes from {3 * BLOCK_BYTES} on do not have the sum"):
            file.read(0, SIZE)
        # Nothing of it was kept.
        source.files[WEIGHTS] = right
        assert file.read(0, SIZE) == right


def test_kept_bytes_that_are_not_those_of_the_known_sums(source: MemorySource, tmp_path: Path) -> None:
    """Fetched before there were sums."""
    right = source.files[WEIGHTS]
    source.files[WEIGHTS] = bytes(SIZE)
    with closing(mirror_of(source, tmp_path)) as mirror:
        assert PieceFile(mirror.path / WEIGHTS).read(0, SIZE) == bytes(SIZE)
    source.files[WEIGHTS] = right
    with closing(mirror_of(source, tmp_path, sums=TwoSums(block_sums(memoryview(right))))) as mirror:
        assert PieceFile(mirror.path / WEIGHTS).read(0, SIZE) == right


def small_mirror(source: MemorySource, cache: Path, content: bytes | None) -> Mirror:
    """Of a listing that says what its small file is, or does not."""
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    listing = Listing({"config.json": RemoteFile(2, digest=digest)})
    return open_mirror(KEY, listing, source, CacheFolder(cache), name="m", location="m")


def test_a_small_file_that_is_not_the_one_that_was_listed(source: MemorySource, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"memory: config.json: SHA-256 is not the one that was listed"):
        small_mirror(source, tmp_path, b"[]")
    source.files["config.json"] = b"[]"
    with closing(small_mirror(source, tmp_path, b"[]")) as mirror:
        assert (mirror.path / "config.json").read_bytes() == b"[]"


def test_a_small_file_that_was_kept_before_its_sum_was_known(source: MemorySource, tmp_path: Path) -> None:
    """As by a process that was killed between the two."""
    small_mirror(source, tmp_path, None).close()
    source.files["config.json"] = b"[]"
    with closing(small_mirror(source, tmp_path, b"[]")) as mirror:
        assert (mirror.path / "config.json").read_bytes() == b"[]"


def test_what_is_forgotten_is_fetched_again(mirror: Mirror, source: MemorySource) -> None:
    file = PieceFile(mirror.path / WEIGHTS)
    file.read(0, SIZE)
    file.forget()
    assert (mirror.path / WEIGHTS).stat().st_blocks == 0
    source.asked.clear()
    assert file.read(0, SIZE) == source.files[WEIGHTS]
    assert source.num_bytes == SIZE


def test_threads_fetch_each_block_once(mirror: Mirror, source: MemorySource) -> None:
    barrier = threading.Barrier(8)

    def read(seed: int) -> bool:
        file, random = PieceFile(mirror.path / WEIGHTS), Random(seed)
        barrier.wait()
        return all(
            file.read(begin, 1000) == source.files[WEIGHTS][begin : begin + 1000]
            for begin in (random.randrange(SIZE - 1000) for _ in range(20))
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert source.num_bytes <= SIZE


def test_a_source_that_sends_too_little(mirror: Mirror, source: MemorySource) -> None:
    source.files[WEIGHTS] = source.files[WEIGHTS][:100]
    with pytest.raises(CheckpointError, match=r"memory: a/weights.safetensors: sends 100 of"):
        PieceFile(mirror.path / WEIGHTS).read(0, SIZE)


def test_halted(source: MemorySource, tmp_path: Path) -> None:
    halt = Halt()
    with closing(mirror_of(source, tmp_path, halt=halt)) as mirror:
        halt.set()
        with pytest.raises(HaltedError):
            PieceFile(mirror.path / WEIGHTS).read(0, 1)


def test_its_files_are_no_checkpoint_without_it(mirror: Mirror, tmp_path: Path) -> None:
    """What is missing would read as zeros."""
    mirror.close()
    for path in (mirror.path, tmp_path / KEY / "files" / "." / ""):
        with pytest.raises(CheckpointError, match="is a cache, which has parts of a checkpoint"):
            Checkpoint.open(path)


def test_a_cache_that_cannot_be_written(source: MemorySource, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/cache: Not a directory: EXPERTMESH_CACHE names"):
        mirror_of(source, CacheFolder(tmp_path / "file" / "cache"))
