"""What killed runs have left is taken away; nothing is from within a host that is one of them."""

import os
from pathlib import Path

import pytest

from scaling.hosts import groups, left_over

# A process that cannot be: of a run that was killed, or of one that is not seen from here.
GONE = "emx4194399-w0"


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with namespaces, and one with what else is left."""
    namespaces, folders = tmp_path / "netns", tmp_path / "folders"
    for folder in (namespaces, folders, folders / GONE):
        folder.mkdir()
    monkeypatch.setattr(left_over, "RUN_NETNS", namespaces)
    monkeypatch.setattr(left_over, "short_temp_dir", lambda: folders)
    monkeypatch.setattr(groups, "roots", list)
    return tmp_path


def test_what_a_killed_run_has_left_is_taken_away(places: Path) -> None:
    (places / "folders" / f"emx{os.getpid()}-w0").mkdir()
    assert GONE in left_over.sweep()
    assert [path.name for path in (places / "folders").iterdir()] == [f"emx{os.getpid()}-w0"]


def test_on_a_host_of_a_run_nothing_is_touched(places: Path) -> None:
    """The run's process may be in another namespace of processes, as a container's is."""
    (places / "netns" / GONE).symlink_to("/proc/self/ns/net")
    assert left_over.sweep() == []
    assert (places / "folders" / GONE).is_dir()
