"""Disks that are full or that fail, made with what the kernel has; skipped where one may not mount."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


@contextmanager
def full_disk(at: Path, num_kib: int) -> Iterator[Path]:
    """A file system that takes so much and no more."""
    at.mkdir()
    _run_or_skip(["mount", "-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", str(at)])
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@contextmanager
def failing_disk(at: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    """A file system whose directory can be read and whose files' data cannot: EIO, from the block device.

    It is an image; the part of it that holds the data of the files that `fill` has written is cut off.
    """
    image, mount = at.with_suffix(".img"), ["mount", "-o", "loop"]
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(4 << 20)
    with ExitStack() as stack:
        _run_or_skip(["mkfs.ext2", "-q", "-b", "1024", str(image)])
        _run_or_skip([*mount, str(image), str(at)])
        fill(at)
        subprocess.run(["umount", str(at)], check=True)
        _run_or_skip([*mount, "-o", "ro", str(image), str(at)])
        stack.callback(subprocess.run, ["umount", str(at)], check=True)
        # The directory and the inodes are at the image's beginning; reading them now keeps them in memory.
        names = [path for path in at.rglob("*") if path.lstat().st_size]
        assert names
        os.truncate(image, 256 << 10)
        yield at


def _run_or_skip(command: Sequence[str]) -> None:
    try:
        done = os.geteuid() == 0 and not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip(f"needs the right to run {command[0]}")
