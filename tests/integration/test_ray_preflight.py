"""C5: tokens, certificates, clocks and versions that do not fit, against Ray's real head; each within 5 s."""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import ray
from ray._private import services

from expert_workers.cluster.ray_environment import RayAccess
from expert_workers.cluster.ray_preflight import PATIENCE, preflight
from moe_model.errors import ClusterError, ConfigError
from tests.coordinator.api.certificates import DAY, Authority
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    assert_one_line_error,
    children,
    run_command,
    stop,
)
from tests.integration.ray_cluster import with_token
from tests.integration.ray_gcs import head, with_tls, write_versions

HOUR = DAY / 24
HOST = "127.0.0.1"
# Seconds that a busy machine may add. Ray alone would take 20 and more.
BUSY = 5.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> dict[str, str]:
    """A certificate that nothing is wrong with."""
    return with_tls(tmp_path_factory.mktemp("ours"), authority, authority.sign())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with head(tmp_path_factory.mktemp("plain") / "head", {}) as port:
        yield port


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, ours: dict[str, str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """A head with a token and TLS, and what gets in."""
    folder = tmp_path_factory.mktemp("secured")
    environment = {**with_token(folder), **ours}
    with head(folder / "head", environment) as port:
        yield port, environment


def look(port: int, environment: dict[str, str], *, insecure: bool = False) -> None:
    preflight(f"{HOST}:{port}", HOST, port, RayAccess.read(environment), insecure=insecure)


def test_an_answer_is_promised_within_five_seconds() -> None:
    assert PATIENCE < 5.0


def assert_refused(port: int, environment: dict[str, str], *parts: str) -> None:
    """One line with all the parts, soon, and with no secret."""
    started = time.monotonic()
    with pytest.raises((ClusterError, ConfigError)) as raised:
        look(port, environment)
    assert time.monotonic() - started < PATIENCE + BUSY
    message = str(raised.value)
    assert message.startswith("Ray ")
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    if "RAY_AUTH_TOKEN_PATH" in environment:
        assert Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text() not in message


def test_what_fits_gets_in(
    secured: tuple[int, dict[str, str]], plain: int, caplog: pytest.LogCaptureFixture
) -> None:
    look(*secured)
    assert caplog.messages == []
    look(plain, {})
    assert [message for message in caplog.messages if "INSECURE" in message and str(plain) in message]


def test_a_token_that_is_missing_or_wrong(
    tmp_path: Path, secured: tuple[int, dict[str, str]], ours: dict[str, str]
) -> None:
    port, _ = secured
    assert_refused(port, ours, "wants a token", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH")
    wrong = with_token(tmp_path)
    assert_refused(port, {**ours, **wrong}, "does not accept the token of", wrong["RAY_AUTH_TOKEN_PATH"])


def test_a_token_where_the_cluster_has_none(tmp_path: Path, plain: int) -> None:
    assert_refused(plain, with_token(tmp_path), "runs without token authentication", "is set here")


def test_a_token_that_others_can_read(tmp_path: Path, secured: tuple[int, dict[str, str]]) -> None:
    port, environment = secured
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    theirs = {**environment, **with_token(tmp_path, token)}
    look(port, theirs)
    Path(theirs["RAY_AUTH_TOKEN_PATH"]).chmod(0o644)
    with pytest.raises(ConfigError, match=r"^Ray token .*/token: others can read .*run chmod 600"):
        look(port, theirs)


def test_tls_on_one_side_only(secured: tuple[int, dict[str, str]], plain: int, ours: dict[str, str]) -> None:
    assert_refused(secured[0], {}, "wants TLS, and none is set up here", "RAY_USE_TLS=1", "RAY_TLS_CA_CERT")
    assert_refused(plain, ours, "speaks without TLS, and RAY_USE_TLS is set here")


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [(-DAY, -HOUR, "has expired, unless"), (HOUR, DAY, "is not valid yet, unless")],
)
def test_a_certificate_of_another_time(
    tmp_path: Path,
    authority: Authority,
    secured: tuple[int, dict[str, str]],
    begins: timedelta,
    ends: timedelta,
    message: str,
) -> None:
    stale = with_tls(tmp_path / "stale", authority, authority.sign(begins=begins, ends=ends))
    assert_refused(
        secured[0], stale, "Ray TLS certificate", stale["RAY_TLS_SERVER_CERT"], message, "clock is wrong"
    )
    with head(tmp_path / "head", stale) as port:
        fresh = with_tls(tmp_path / "fresh", authority, authority.sign())
        assert_refused(port, fresh, "its certificate", message, "clock is wrong")


def test_another_ca(tmp_path: Path, authority: Authority, secured: tuple[int, dict[str, str]]) -> None:
    other = Authority("another CA")
    theirs = with_tls(tmp_path / "theirs", other, other.sign())
    assert_refused(
        secured[0], theirs, "cannot be trusted: its certificate is not of the CA", theirs["RAY_TLS_CA_CERT"]
    )
    mixed = with_tls(tmp_path / "mixed", authority, other.sign())
    assert_refused(
        secured[0], mixed, f"{mixed['RAY_TLS_SERVER_CERT']}: is not of the CA {mixed['RAY_TLS_CA_CERT']}"
    )
    # The head trusts neither, and we trust both.
    both = with_tls(tmp_path / "both", authority, other.sign(), ca=authority.pem + other.pem)
    assert_refused(secured[0], both, f"does not accept the certificate {both['RAY_TLS_SERVER_CERT']}")


def test_a_certificate_for_another_address(
    tmp_path: Path, authority: Authority, ours: dict[str, str]
) -> None:
    elsewhere = with_tls(tmp_path, authority, authority.sign("elsewhere", addresses=["192.0.2.1"]))
    with head(tmp_path / "head", elsewhere) as port:
        assert_refused(port, ours, "is for another name or address", HOST)


@pytest.mark.parametrize(
    ("versions", "part"),
    [
        (
            {"ray_version": ray.__version__, "python_version": "3.9.1"},
            f"Ray {ray.__version__} on Python 3.9.1",
        ),
        ({"python_version": "x" * 5000}, "on Python xxx"),
    ],
)
def test_another_python(tmp_path: Path, versions: dict[str, str], part: str) -> None:
    with head(tmp_path / "head", {}) as port:
        look(port, {})
        write_versions(port, **versions)
        assert_refused(port, {}, "cannot be used: it is", part, "install the same everywhere")


def test_a_head_that_hangs(tmp_path: Path, ours: dict[str, str]) -> None:
    before = children(os.getpid())
    with head(tmp_path / "head", {}) as port:
        (pid,) = children(os.getpid()) - before
        stop(pid)
        assert_refused(port, {}, "cannot be reached: timed out")
        with pytest.raises(ClusterError, match="cannot be reached: timed out"):
            preflight(f"{HOST}:{port}", HOST, port, RayAccess.read(ours), patience=0.5)


def test_a_cluster_of_other_machines_without_tokens_needs_insecure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = str(services.get_node_ip_address())  # type: ignore[no-untyped-call]
    with head(tmp_path / "head", {}, host) as port:
        address = f"{host}:{port}"
        options = ("--prompt", "x", "--workers", "1", "--ray-address", address)
        refused = run_command("generate", str(DEMO_CHECKPOINT), *options, env={"RAY_AUTH_MODE": ""})
        assert_one_line_error(refused, address, "without token authentication", "--insecure")
        preflight(address, host, port, RayAccess(), insecure=True)
    assert [message for message in caplog.messages if "INSECURE" in message and address in message]
