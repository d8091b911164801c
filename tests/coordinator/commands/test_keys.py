"""expertmesh keys new: what it prints is a key and the line that lets it in."""

import argparse
from pathlib import Path

import pytest

from coordinator.api.security.api_keys import ApiKeys
from coordinator.commands import keys
from coordinator.config.key_limits import Limits
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import write_private


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    keys.add_arguments(parser)
    return keys.run(parser.parse_args(argv))


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The key and the line."""
    shown = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 2
    return shown[0], shown[1]


@pytest.mark.parametrize(
    ("argv", "is_admin", "limits"),
    [
        ((), False, Limits()),
        (("--admin",), True, Limits()),
        (("--limits", "rps=0.5,tokens_per_minute=2500000"), False, Limits(0.5, None, 2_500_000)),
        (("--admin", "--limits", "concurrent=3"), True, Limits(concurrent=3)),
    ],
)
def test_a_new_key_gets_in(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: tuple[str, ...],
    is_admin: bool,
    limits: Limits,
) -> None:
    assert run("new", "alice", *argv) == 0
    secret, line = printed(capsys)
    assert secret not in line
    found = ApiKeys.open(write_private(tmp_path / "keys", line.encode())).find(secret)
    assert found is not None
    assert (found.name, found.is_admin, found.limits) == ("alice", is_admin, limits)


def test_each_key_is_another(capsys: pytest.CaptureFixture[str]) -> None:
    run("new", "alice")
    first = printed(capsys)
    run("new", "alice")
    assert printed(capsys)[0] != first[0]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 65, "a\nb"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="a name is 1 to 64"):
        run("new", name)


@pytest.mark.parametrize("argv", [(), ("old",), ("new",), ("new", "a", "--limits", "rps=0")])
def test_usage(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    assert caught.value.code == 2
