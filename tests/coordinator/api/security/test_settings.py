"""The start matrix: which addresses a server may listen on with what protection."""

import logging
from pathlib import Path

import pytest

from coordinator.api.security.api_keys import key_of
from coordinator.api.security.auth import Identity
from coordinator.api.security.settings import Security, with_defaults
from coordinator.api.shared.errors import ApiError
from coordinator.config.key_limits import Limits
from coordinator.config.security import SecurityConfig
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import Authority, write_private

SECRET = "em-alice-alice-alice"
ANYWHERE = ("0.0.0.0:1", "[::]:1", "192.0.2.1:1", "my-host.example:1")
LOOPBACK = ("127.0.0.1:1", "[::1]:1", "localhost:1", "127.1.2.3:1")
FRONTS = ("grpc", "http", "control", "metrics")


def security(folder: Path, *, tls: bool, keys: bool, insecure: bool = False) -> Security:
    path = write_private(folder / "keys", key_of("alice", SECRET).line().encode())
    return Security.open(
        SecurityConfig(
            api_key_file=path if keys else None,
            tls=Authority().write(folder) if tls else None,
            insecure=insecure,
        )
    )


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("keys", [True, False])
def test_the_start_matrix(
    tmp_path: Path, front: str, tls: bool, keys: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = security(tmp_path, tls=tls, keys=keys)
    others = {name: "127.0.0.1:0" for name in FRONTS if name != front}
    for address in LOOPBACK:
        found.check_addresses({**others, front: address})
    for address in ANYWHERE:
        if tls and keys:
            found.check_addresses({**others, front: address})
            continue
        with pytest.raises(ConfigError, match=f"{front} address") as caught:
            found.check_addresses({**others, front: address})
        message = str(caught.value)
        assert address in message
        assert "--insecure" in message
        assert "\n" not in message
        missing = message.partition("without ")[2].partition(";")[0]
        assert ("TLS" in missing, "API keys" in missing) == (not tls, not keys)
    assert caplog.records == []


@pytest.mark.parametrize("address", ANYWHERE)
def test_insecure_is_loud(tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture) -> None:
    found = security(tmp_path, tls=False, keys=True, insecure=True)
    found.check_addresses({"grpc": address, "http": "127.0.0.1:0"})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages == [f"INSECURE: grpc on {address} is open to other machines without TLS"]


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="http address 'x': expected"):
        Security.open(SecurityConfig()).check_addresses({"http": "x"})


def test_without_keys_everybody_may_do_everything() -> None:
    found = Security.open(SecurityConfig())
    assert found.authenticator.is_open
    assert found.authenticator.check(None, "").is_admin
    assert found.with_reflection


@pytest.mark.parametrize(("given", "on"), [(None, False), (True, True), (False, False)])
def test_reflection_is_off_with_keys_unless_asked_for(given: bool | None, on: bool) -> None:
    assert Security.open(SecurityConfig(reflection=given), SECRET).with_reflection is on


def test_reflection_can_be_off_without_keys() -> None:
    assert not Security.open(SecurityConfig(reflection=False)).with_reflection


def test_keys_of_the_file_and_of_the_environment(tmp_path: Path) -> None:
    path = write_private(tmp_path / "keys", key_of("alice", SECRET).line().encode())
    found = Security.open(SecurityConfig(api_key_file=path), "em-from-the-environment")
    assert found.authenticator.check(f"Bearer {SECRET}", "") == Identity("alice")
    given = found.authenticator.check("Bearer em-from-the-environment", "")
    assert given == Identity("default", is_admin=True)
    with pytest.raises(ApiError):
        found.authenticator.check(None, "")


def test_a_key_has_its_own_limits_or_those_of_all(tmp_path: Path) -> None:
    line = key_of("alice", SECRET, limits=Limits(rps=1)).line()
    path = write_private(tmp_path / "keys", line.encode())
    config = SecurityConfig(api_key_file=path, key_limits=Limits(rps=5, concurrent=1))
    quotas = Security.open(config).quotas
    with quotas.enter("alice"), pytest.raises(ApiError, match="1 requests at once"), quotas.enter("alice"):
        pass
    with pytest.raises(ApiError, match="1 requests per second"), quotas.enter("alice"):
        pass


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"API key file .*none: No such file"):
        Security.open(SecurityConfig(api_key_file=tmp_path / "none"))


def test_defaults_fill_what_is_not_given() -> None:
    assert with_defaults(Limits(rps=1), Limits(rps=2, concurrent=3)) == Limits(rps=1, concurrent=3)
