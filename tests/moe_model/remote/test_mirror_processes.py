"""Several processes over one cache: killed while they fetch, and stopped while they hold what others want."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from moe_model.files.piece_file import PieceFile
from moe_model.halt import Halt
from moe_model.remote import mirror_file
from moe_model.remote.cache import CacheFolder
from moe_model.remote.folder_source import FolderSource
from moe_model.remote.listing import BLOCK_BYTES, SUM_BYTES, Listing, RemoteFile
from moe_model.remote.mirror import Mirror, open_mirror
from moe_model.remote.range_lock import locked_range
from moe_model.remote.token_bucket import TokenBucket

NAME = "weights.safetensors"
SIZE = 12 * BLOCK_BYTES + 5

# Fetches all of it, slowly, and tells of each block.
READER = """
import sys
from pathlib import Path
from moe_model.files.piece_file import PieceFile
from tests.moe_model.remote.test_mirror_processes import NAME, SIZE, BLOCK_BYTES, opened
mirror = opened(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
for offset in range(0, SIZE, BLOCK_BYTES):
    PieceFile(mirror.path / NAME).read(offset, 1)
    print(offset, flush=True)
sys.stdin.read()
"""


def opened(folder: Path, cache: Path, bytes_per_second: float | None = None) -> Mirror:
    listing = Listing({NAME: RemoteFile(SIZE)})
    bucket = TokenBucket(bytes_per_second)
    place = CacheFolder(cache, 1 << 30)
    source = FolderSource(folder)
    return open_mirror("mirror-1", listing, source, place, name="m", location="m", bucket=bucket)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / NAME).write_bytes(Random(0).randbytes(SIZE))
    return tmp_path / "source"


@pytest.fixture
def readers() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for each in found:
        each.kill()
        each.communicate()


def start(folder: Path, cache: Path, bytes_per_second: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", READER, str(folder), str(cache), str(bytes_per_second)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )


def wait_for_block(reader: subprocess.Popen[bytes]) -> None:
    assert reader.stdout is not None
    assert reader.stdout.readline().strip().isdigit()


def wait_for_lock(cache: Path, block: int) -> None:
    """Until another process has it."""
    descriptor, pause = os.open(cache / "mirror-1" / "sums" / NAME, os.O_RDWR), threading.Event()
    try:
        while True:
            with locked_range(descriptor, block * SUM_BYTES, SUM_BYTES, 0, Halt()) as got:
                if not got:
                    return
            pause.wait(0.01)
    finally:
        os.close(descriptor)


@pytest.mark.long
def test_killed_again_and_again(folder: Path, tmp_path: Path, readers: list[subprocess.Popen[bytes]]) -> None:
    """What each one has kept is there for the next."""
    for num_blocks in (1, 3, 2):
        reader = start(folder, tmp_path / "cache", 40 * BLOCK_BYTES)
        readers.append(reader)
        for _ in range(num_blocks):
            wait_for_block(reader)
        reader.kill()
        reader.wait()
    with closing(opened(folder, tmp_path / "cache")) as mirror:
        file = mirror.file(NAME)
        assert file is not None
        assert len(file.present()) >= 3
        assert PieceFile(mirror.path / NAME).read(0, SIZE) == (folder / NAME).read_bytes()
        assert mirror.num_fetched <= SIZE - 3 * BLOCK_BYTES


@pytest.mark.long
def test_one_that_hangs_costs_a_wait_with_an_end(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    readers: list[subprocess.Popen[bytes]],
) -> None:
    """It was stopped while it was fetching the block that this process wants."""
    monkeypatch.setattr(mirror_file, "_LOCK_SECONDS", 0.3)
    reader = start(folder, tmp_path / "cache", BLOCK_BYTES / 60)
    readers.append(reader)
    # The first has come at once, the next one waits for its time, with its lock held.
    wait_for_block(reader)
    wait_for_lock(tmp_path / "cache", 1)
    with closing(opened(folder, tmp_path / "cache")) as mirror:
        os.kill(reader.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert PieceFile(mirror.path / NAME).read(0, SIZE) == (folder / NAME).read_bytes()
        assert mirror.num_fetched == SIZE - BLOCK_BYTES
        assert 0.3 <= time.monotonic() - started < 30


@pytest.mark.long
def test_the_lock_of_one_that_is_dead_is_free(
    folder: Path, tmp_path: Path, readers: list[subprocess.Popen[bytes]]
) -> None:
    """Not waited for: it would take a minute."""
    reader = start(folder, tmp_path / "cache", BLOCK_BYTES / 60)
    readers.append(reader)
    wait_for_block(reader)
    wait_for_lock(tmp_path / "cache", 1)
    with closing(opened(folder, tmp_path / "cache")) as mirror:
        reader.kill()
        reader.wait()
        assert PieceFile(mirror.path / NAME).read(0, SIZE) == (folder / NAME).read_bytes()
        assert mirror.num_fetched == SIZE - BLOCK_BYTES
