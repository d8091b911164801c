"""S13, S14: a cluster of our own keeps its token to itself, has no dashboard and reports to nobody."""

import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.cluster.ray_environment import RayAccess
from expert_workers.cluster.ray_preflight import preflight
from moe_model.errors import ClusterError
from tests.integration.processes import children
from tests.integration.ray_cluster import with_token

USERS_TOKEN = "the-token-of-the-user"
API_KEY = "em-a-key-of-the-server"


@dataclass(frozen=True)
class Started:
    """A cluster that has run something, the user's folder, what was logged, and all processes."""

    cluster: RayCluster
    home: Path
    log: io.StringIO
    secret: str
    pids: frozenset[int]

    @property
    def token_path(self) -> Path:
        return Path(self.cluster.environment["RAY_AUTH_TOKEN_PATH"])


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    home, before = tmp_path_factory.mktemp("home"), children(os.getpid())
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(USERS_TOKEN)
    (home / ".ray" / "auth_token").chmod(0o644)
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        variables = {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": USERS_TOKEN}
        for name, value in {**variables, "A_KEY": API_KEY}.items():
            patch.setenv(name, value)
        cluster = RayCluster.start_local(num_cpus=1, object_store_bytes=80 << 20, hidden=["A_KEY"])
        assert {name: os.environ[name] for name in variables} == variables
        assert os.environ["A_KEY"] == API_KEY
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    pids = frozenset(children(os.getpid()) - before)
    assert worker in pids
    secret = RayAccess.read(cluster.environment).token
    assert secret is not None
    yield Started(cluster, home, handler.stream, secret, pids)
    logging.getLogger().removeHandler(handler)
    cluster.close()


def proc(pid: int, name: str) -> bytes:
    """Empty for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def test_the_token_is_a_private_file_of_this_cluster(started: Started) -> None:
    path = started.token_path
    assert len(started.secret) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert started.secret not in repr(RayAccess.read(started.cluster.environment))


def test_no_process_shows_it(started: Started) -> None:
    """Nor the user's own token, nor a key that was to be hidden: of every process, Ray's workers included."""
    for pid in started.pids:
        shown = proc(pid, "cmdline") + proc(pid, "environ")
        for secret in (started.secret, USERS_TOKEN, API_KEY):
            assert secret.encode() not in shown, pid
    path = f"RAY_AUTH_TOKEN_PATH={started.token_path}".encode()
    assert [path in environment for environment in natives(started)] == [True, True]


def natives(started: Started) -> list[bytes]:
    """The environments of Ray's head and raylet. Its Python processes write their titles over theirs."""
    binaries = (b"/gcs_server", b"/raylet")
    pids = [pid for pid in started.pids if proc(pid, "cmdline").split(b"\0")[0].endswith(binaries)]
    return [proc(pid, "environ") for pid in pids]


def test_no_log_holds_it(started: Started) -> None:
    folder = started.token_path.parent / "r"
    assert folder is not None
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if "gcs_server" in path.name and path.stat().st_size]
    assert [path for path in files if started.secret.encode() in path.read_bytes()] == []
    assert started.secret not in started.log.getvalue()


def test_the_users_own_token_is_left_alone_and_reported(started: Started) -> None:
    path = started.home / ".ray" / "auth_token"
    assert path.read_text() == USERS_TOKEN
    assert os.listdir(started.home / ".ray") == ["auth_token"]
    assert f"Ray token {path}: others can read or change it; run chmod 600 on it" in started.log.getvalue()


def test_nobody_gets_in_without_it(started: Started, tmp_path: Path) -> None:
    host, _, port = started.cluster.address.rpartition(":")
    wants = pytest.raises(ClusterError, match="wants a token")
    refuses = pytest.raises(ClusterError, match="does not accept the token of")
    with wants:
        preflight(started.cluster.address, host, int(port), RayAccess())
    with refuses:
        preflight(started.cluster.address, host, int(port), RayAccess.read(with_token(tmp_path)))
    preflight(started.cluster.address, host, int(port), RayAccess.read(started.cluster.environment))


def test_there_is_no_dashboard_and_no_report(started: Started) -> None:
    commands = [proc(pid, "cmdline").split(b"\0") for pid in started.pids]
    dashboards = [
        command for command in commands if any(b"dashboard/dashboard.py" in part for part in command)
    ]
    assert dashboards
    for command in dashboards:
        assert {b"--disable-frontend", b"--modules-to-load=UsageStatsHead"} <= set(command)
    assert [b"RAY_USAGE_STATS_ENABLED=0" in found.split(b"\0") for found in natives(started)] == [True, True]


def test_nothing_of_it_is_left_when_the_cluster_ends(started: Started) -> None:
    """The last test: it ends the cluster."""
    started.cluster.close()
    assert not started.token_path.parent.exists()
    assert os.environ.get("RAY_AUTH_MODE") is None
