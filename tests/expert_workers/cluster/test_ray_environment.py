"""What is taken from the environment for Ray: by its own rules, and only from private files."""

import logging
import os
import stat
from pathlib import Path

import pytest

from expert_workers.cluster.ray_environment import (
    OwnToken,
    RayAccess,
    changed_environment,
    read_tls,
    warn_of_open_token,
)
from expert_workers.tls import TlsPaths
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import write_private

TOKEN = "0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path


@pytest.mark.parametrize("mode", ["", "disabled", "other"])
def test_without_token_mode_there_is_none(mode: str) -> None:
    """Even if one is there: Ray would not show it."""
    assert RayAccess.read({"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": TOKEN}) == RayAccess()


def test_where_the_token_comes_from(home: Path) -> None:
    own = write_private(home / ".ray" / "auth_token", b"from-home\n")
    path = write_private(home / "token", b"  from-file \r\nand more\n")
    environment = {"RAY_AUTH_MODE": "Token"}
    assert RayAccess.read(environment) == RayAccess("from-home", str(own))
    environment["RAY_AUTH_TOKEN_PATH"] = str(path)
    assert RayAccess.read(environment) == RayAccess("from-file", str(path))
    environment["RAY_AUTH_TOKEN"] = TOKEN
    assert RayAccess.read(environment) == RayAccess(TOKEN, "RAY_AUTH_TOKEN")
    assert TOKEN not in repr(RayAccess.read(environment))


def test_no_token_where_one_is_wanted(home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^Ray token .*/\.ray/auth_token: there is none, .*RAY_AUTH_TOKEN_PATH"
    ):
        RayAccess.read({"RAY_AUTH_MODE": "token"})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622])
def test_a_token_that_others_can_read_or_change(home: Path, mode: int) -> None:
    path = write_private(home / ".ray" / "auth_token", TOKEN.encode())
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"^Ray token {path}: others can read or change it; run chmod 600"):
        RayAccess.read({"RAY_AUTH_MODE": "token"})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"x" * 4097, "visible characters"), (b"a\x00b", "visible")],
)
def test_a_token_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_private(tmp_path / "token", content)
    with pytest.raises(ConfigError, match=message):
        RayAccess.read({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})


def test_tls_needs_all_its_files_and_a_private_key(tmp_path: Path) -> None:
    cert, key, ca = (write_private(tmp_path / name, b"x") for name in ("cert", "key", "ca"))
    files = {"RAY_TLS_SERVER_CERT": str(cert), "RAY_TLS_SERVER_KEY": str(key), "RAY_TLS_CA_CERT": str(ca)}
    assert read_tls(files) is None
    for on in ("1", "true", "TRUE"):
        assert read_tls({**files, "RAY_USE_TLS": on}) == TlsPaths(str(cert), str(key), str(ca))
    with pytest.raises(ConfigError, match="RAY_USE_TLS is set and RAY_TLS_CA_CERT is not"):
        read_tls({**files, "RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": ""})
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"Ray TLS key .*: others can read"):
        read_tls({**files, "RAY_USE_TLS": "1"})


def test_a_token_of_our_own_is_private_and_new(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    token, other = OwnToken(tmp_path), OwnToken(tmp_path / "other")
    assert stat.S_IMODE(token.path.stat().st_mode) == 0o600
    access = RayAccess.read(token.environment)
    assert access.token is not None
    assert len(access.token) == 64
    assert access.token != RayAccess.read(other.environment).token
    assert access.token not in repr(token.environment)


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    before = dict(os.environ)
    with changed_environment({"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": "p"}):
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == "p"
    assert dict(os.environ) == before


def test_the_users_open_token_is_reported_and_no_other(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_open_token()
    path = write_private(home / ".ray" / "auth_token", TOKEN.encode())
    warn_of_open_token()
    assert caplog.messages == []
    path.chmod(0o644)
    warn_of_open_token()
    assert caplog.messages == [f"Ray token {path}: others can read or change it; run chmod 600 on it"]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As a container's is, whose number no file knows."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    warn_of_open_token()
    assert not caplog.text
    assert RayAccess.read({}) == RayAccess()
    with pytest.raises(ConfigError, match="there is no home folder; say in RAY_AUTH_TOKEN_PATH where"):
        RayAccess.read({"RAY_AUTH_MODE": "token"})
