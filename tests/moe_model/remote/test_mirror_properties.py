"""Whatever happens to what a mirror has kept, what is read of it is what its source has."""

import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from moe_model.files.piece_file import PieceFile
from moe_model.remote.cache import CacheFolder
from moe_model.remote.listing import BLOCK_BYTES, SUM_BYTES
from moe_model.remote.mirror import Mirror
from tests.moe_model.remote.sources import MemorySource, mirror_of

SIZE = 4 * BLOCK_BYTES + 777
NAMES = ("a.safetensors", "b/c.safetensors")
FILES = {name: Random(number).randbytes(SIZE) for number, name in enumerate(NAMES)}
BLOCKS = st.integers(0, SIZE // BLOCK_BYTES)
Step = Callable[[Mirror], None]


def data_of(mirror: Mirror, name: str) -> Path:
    return mirror.path / name


def sums_of(mirror: Mirror, name: str) -> Path:
    return mirror.path.parent / "sums" / name


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """As far as the file goes: others write no more either."""
    if path.exists():
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data[: max(0, path.stat().st_size - offset)])


def read(name: str, begin: int, size: int) -> Step:
    def step(mirror: Mirror) -> None:
        end = min(begin + size, SIZE)
        assert PieceFile(data_of(mirror, name)).read(begin, end - begin) == FILES[name][begin:end]

    return step


def rot(name: str, offset: int, data: bytes) -> Step:
    return lambda mirror: overwrite(data_of(mirror, name), offset, data)


def wrong_sum(name: str, block: int, data: bytes) -> Step:
    return lambda mirror: overwrite(sums_of(mirror, name), block * SUM_BYTES, data)


def block_without_sum(name: str, block: int) -> Step:
    """As a process leaves it that was killed between the two."""
    begin = block * BLOCK_BYTES
    return lambda mirror: overwrite(data_of(mirror, name), begin, FILES[name][begin : begin + BLOCK_BYTES])


def sum_without_block(name: str, block: int) -> Step:
    """As a machine may leave it that lost power."""
    return lambda mirror: overwrite(data_of(mirror, name), block * BLOCK_BYTES, bytes(BLOCK_BYTES))


def cut(name: str, size: int, is_sums: bool) -> Step:
    def step(mirror: Mirror) -> None:
        path = sums_of(mirror, name) if is_sums else data_of(mirror, name)
        if path.exists():
            os.truncate(path, min(size, path.stat().st_size))

    return step


def forget(name: str) -> Step:
    return lambda mirror: PieceFile(data_of(mirror, name)).forget()


def remove(name: str) -> Step:
    return lambda mirror: data_of(mirror, name).unlink(missing_ok=True)


NAMED = st.sampled_from(NAMES)
DATA = st.binary(min_size=1, max_size=64)
READS = st.builds(read, NAMED, st.integers(0, SIZE), st.integers(0, SIZE))
STEPS = st.one_of(
    READS,
    READS,
    st.builds(rot, NAMED, st.integers(0, SIZE), DATA),
    st.builds(wrong_sum, NAMED, BLOCKS, DATA),
    st.builds(block_without_sum, NAMED, BLOCKS),
    st.builds(sum_without_block, NAMED, BLOCKS),
    st.builds(cut, NAMED, st.integers(0, SIZE), st.booleans()),
    st.builds(forget, NAMED),
    st.builds(remove, NAMED),
)
# From less than a block to more than there is.
LIMITS = st.integers(0, 12 * BLOCK_BYTES)


@given(st.lists(st.lists(STEPS, max_size=6), min_size=1, max_size=3), LIMITS)
def test_reads_are_those_of_the_source(lives: list[list[Step]], max_bytes: int) -> None:
    """Over several processes' lives, in a cache of any size."""
    source = MemorySource(FILES)
    with tempfile.TemporaryDirectory() as folder:
        for steps in lives:
            with closing(mirror_of(source, CacheFolder(Path(folder), max_bytes))) as mirror:
                for step in steps:
                    step(mirror)
                for name in NAMES:
                    read(name, 0, SIZE)(mirror)
