"""When a file counts as changed."""

import os
from pathlib import Path

from coordinator.api.shared.file_watch import FileWatch
from tests.coordinator.api.certificates import write_private
from tests.coordinator.api.clock import Clock


def test_looks_once_a_second(tmp_path: Path) -> None:
    path, clock = write_private(tmp_path / "f", b"one"), Clock()
    watch = FileWatch((path,), clock)
    write_private(path, b"two")
    clock.now += 0.9
    assert not watch.changed()
    clock.now += 0.2
    assert watch.changed()
    clock.now += 2
    assert not watch.changed()


def test_sees_every_kind_of_change(tmp_path: Path) -> None:
    path, target = tmp_path / "link", write_private(tmp_path / "a", b"same")
    path.symlink_to(target)
    watch = FileWatch((path,), interval=0)
    assert not watch.changed()
    # In place, with the size and the time of before.
    before = target.stat()
    write_private(target, b"else")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watch.changed()
    with target.open("ab") as file:
        file.write(b"x")
    assert watch.changed()
    path.unlink()
    assert watch.changed()
    path.symlink_to(write_private(tmp_path / "b", b"same"))
    assert watch.changed()
    assert not watch.changed()
