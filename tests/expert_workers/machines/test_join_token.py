"""A join token: one line in a file that is closed to others."""

from pathlib import Path

import pytest

from expert_workers.machines.join_token import JoinToken
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import write_private


@pytest.mark.parametrize("brings", [False, True])
def test_a_token_survives_its_file(tmp_path: Path, brings: bool) -> None:
    made = JoinToken.new("ab" * 32, brings)
    path = write_private(tmp_path / "join.token", made.line().encode())
    assert JoinToken.read(path) == made
    assert made.line().count("\n") == 1
    assert made.secret not in repr(made)
    assert JoinToken.new("ab" * 32).secret != made.secret


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write_private(tmp_path / "join.token", JoinToken.new("ab" * 32).line().encode())
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        JoinToken.read(path)


@pytest.mark.parametrize("text", [b"", b"emj1-aa-bb", b"\xff" * 200, b"emj2-" + b"a" * 64 + b"-" + b"a" * 64])
def test_what_is_no_token_is_named(tmp_path: Path, text: bytes) -> None:
    path = write_private(tmp_path / "join.token", text)
    with pytest.raises(ConfigError, match=r"join token .*copy join\.token"):
        JoinToken.read(path)


def test_a_token_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        JoinToken.read(tmp_path / "none")
