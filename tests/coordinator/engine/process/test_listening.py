"""An engine's socket: only its own user reaches it, and it takes the place of a dead one's only."""

import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.engine.process.listening import listen_at, user_of
from moe_model.errors import ConfigError


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name; pytest's own are too long for a socket's."""
    with tempfile.TemporaryDirectory(prefix="em-") as name:
        yield Path(name) / "private"


def test_only_its_user_reaches_it(folder: Path) -> None:
    path = folder / "engine"
    with listen_at(path):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_folder_that_others_can_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"private: others can enter it.*0700"):
        listen_at(folder / "engine")


def test_a_dead_engine_s_socket_is_replaced(folder: Path) -> None:
    path = folder / "engine"
    listen_at(path).close()
    assert path.is_socket()
    with listen_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("num_waiting", [0, 200], ids=["idle", "queue full"])
def test_a_living_engine_s_socket_is_not(folder: Path, num_waiting: int) -> None:
    path = folder / "engine"
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(num_waiting)]
    with listen_at(path):
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(str(path))
        with pytest.raises(ConfigError, match="engine: another engine listens there"):
            listen_at(path)
        assert path.is_socket()
    for each in waiting:
        each.close()


def test_what_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "engine"
    folder.mkdir(mode=0o700)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="engine: is there and is no socket"):
        listen_at(path)
    assert path.read_text() == "mine"


def test_a_path_that_no_socket_may_have_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="longer than the 107 bytes"):
        listen_at(folder / ("x" * 100))


def test_the_other_side_s_user_is_known(folder: Path) -> None:
    here, there = socket.socketpair()
    with here, there:
        assert user_of(here) == Path("/proc/self").stat().st_uid
