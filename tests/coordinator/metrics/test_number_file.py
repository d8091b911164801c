"""Numbers in a file: seen by others at once, kept when their process is killed, never half written."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.metrics.number_file import FILE_BYTES, NumberFile
from tests.sources import ROOT

A, B = ("a", ("x", "é")), ("b", ())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counts"


def test_others_see_at_once_what_is_counted(path: Path) -> None:
    own, other = NumberFile(path), NumberFile(path)
    assert (other.find(A), other.items()) == (None, [])
    numbers = own.allocate(A, 3)
    numbers[1] += 2.5
    assert other.items() == [(A, [0.0, 2.5, 0.0])]
    numbers[2] = -1
    own.allocate(B, 1)[0] = 7
    assert dict(other.items()) == {A: [0.0, 2.5, -1.0], B: [7.0]}
    found = other.find(B)
    assert found is not None
    assert found.tolist() == [7.0]


def test_who_takes_a_place_counts_on(path: Path) -> None:
    NumberFile(path).allocate(A, 1)[0] = 3
    numbers = NumberFile(path).allocate(A, 1)
    numbers[0] += 1
    assert NumberFile(path).items() == [(A, [4.0])]


def test_only_what_was_held_is_given_back(path: Path) -> None:
    own = NumberFile(path)
    own.allocate(("held_places", ()), 2)[1] = 5
    own.allocate(A, 1)[0] = 3
    NumberFile(path).release()
    assert dict(own.items()) == {("held_places", ()): [0.0, 0.0], A: [3.0]}


@given(
    st.lists(st.tuples(st.text(max_size=9), st.integers(1, 9)), max_size=9, unique_by=lambda each: each[0])
)
def test_any_keys_and_sizes(tmp_path_factory: pytest.TempPathFactory, series: list[tuple[str, int]]) -> None:
    path = tmp_path_factory.mktemp("numbers") / "counts"
    own, other = NumberFile(path), NumberFile(path)
    for place, (name, count) in enumerate(series):
        own.allocate((name, (name,)), count)[count - 1] = place + 0.5
        assert len(other.items()) == place + 1
    expected = {
        (name, (name,)): [0.0] * (count - 1) + [place + 0.5] for place, (name, count) in enumerate(series)
    }
    assert dict(other.items()) == expected


@pytest.mark.parametrize("hidden", [slice(0, 16), slice(0, 8), slice(8, 16), slice(16, 24), slice(20, 40)])
def test_a_series_is_seen_once_all_of_it_is(path: Path, hidden: slice) -> None:
    """Other processors may see where a series ends before what is in it, piece by piece."""
    own, other = NumberFile(path), NumberFile(path)
    own.allocate(A, 1)[0] = 1
    begin = struct.unpack_from("<8sQ", path.read_bytes())[1]
    own.allocate(B, 1)[0] = 2
    written = path.read_bytes()[begin:]
    with path.open("r+b") as file:
        file.seek(begin + hidden.start)
        file.write(bytes(hidden.stop - hidden.start))
        file.flush()
        assert other.items() == [(A, [1.0])]
        file.seek(begin + hidden.start)
        file.write(written[hidden])
        file.flush()
        assert other.items() == [(A, [1.0]), (B, [2.0])]


def test_what_a_writer_left_half_written_is_not_there(path: Path) -> None:
    NumberFile(path).allocate(A, 1)[0] = 1
    end = struct.unpack_from("<8sQ", path.read_bytes())[1]
    with path.open("r+b") as file:
        file.seek(end)
        file.write(struct.pack("<II", 4, 99) + b"rest of a series that has no end" * 9)
    own = NumberFile(path)
    assert own.items() == [(A, [1.0])]
    own.allocate(B, 40)
    assert dict(own.items()) == {A: [1.0], B: [0.0] * 40}


def test_a_file_has_its_mark_at_every_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed while a series is added leaves all others."""
    own = NumberFile(path)
    own.allocate(A, 1)[0] = 1

    class Killed:
        """The end of the process where the head is written."""

        def __init__(self, head: "memoryview[int]") -> None:
            self._head = head

        def __setitem__(self, place: int, value: int) -> None:
            self._head[place] = value
            raise KeyboardInterrupt

        def __iter__(self) -> Iterator[int]:
            return iter(self._head)

    monkeypatch.setattr(own, "_head", Killed(own._head))
    with pytest.raises(KeyboardInterrupt):
        own.allocate(B, 1)
    assert dict(NumberFile(path).items()) == {A: [1.0], B: [0.0]}


def test_a_full_file_keeps_new_series_to_its_process(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own, other = NumberFile(path), NumberFile(path)
    own.allocate(A, FILE_BYTES // 8 - 10)
    numbers = own.allocate(B, 9)
    numbers[0] += 1
    assert numbers[0] == 1
    assert other.find(B) is None
    assert "is full: b of this process" in caplog.text


def test_a_file_of_a_disk_without_room_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No space left"):
        NumberFile(path)
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_others_cannot_read_it_and_a_link_is_not_followed(path: Path) -> None:
    NumberFile(path)
    assert path.stat().st_mode & 0o777 == 0o600
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        NumberFile(link)


PROGRAM = """
import sys
from pathlib import Path
from coordinator.metrics.number_file import NumberFile
file = NumberFile(Path(sys.argv[1]))
print("begun", flush=True)
for number in range(1 << 30):
    numbers = file.allocate((f"series {number % 5000}", ()), 3)
    for place in range(3):
        numbers[place] += 1
"""


@pytest.mark.parametrize("num_seen", [0, 40, 800])
def test_a_process_that_is_killed_leaves_what_it_counted(path: Path, num_seen: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", PROGRAM, path], cwd=ROOT, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == b"begun\n"
        reader = NumberFile(path)
        while len(reader.items()) < num_seen:
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    found = NumberFile(path).items()
    assert len(found) >= num_seen
    assert [json.dumps(key) for key, _ in found] == [
        json.dumps([f"series {number}", []]) for number in range(len(found))
    ]
    # Each number is whole, and at most one series was being added to.
    assert sum(len(set(numbers)) > 1 for _, numbers in found) <= 1
