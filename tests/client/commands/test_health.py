"""expertmesh health: an exit code, and why not."""

import socket

import pytest

from expertmesh import cli


def test_a_server_that_is_not_there_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        # Bound, and without a listener.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main(["health", address, "--timeout", "0.2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{address} is not ready after 0.2 s: nothing listens at" in line


def test_the_time_is_more_than_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["health", "127.0.0.1:1", "--timeout", "0"])
    assert ended.value.code == 2
    assert "--timeout" in capsys.readouterr().err
