"""The folder of a cluster's machine: closed, held by one, whole whenever it is looked at."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from expert_workers.machines.cluster_folder import ClusterFolder, Membership
from expert_workers.machines.node_environment import node_environment
from expert_workers.machines.ports import NodePorts, PortRange
from moe_model.errors import ConfigError

HELD = """
import sys
from pathlib import Path
from expert_workers.machines.cluster_folder import ClusterFolder
with ClusterFolder.create(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""
WRITES = """
import sys
from pathlib import Path
from expert_workers.machines.cluster_folder import ClusterFolder
folder = ClusterFolder.find(Path(sys.argv[1]))
print("writes", flush=True)
number = 0
while True:
    folder.write("ray.token", b"%d" % (number % 10) * 4096)
    number += 1
"""


def test_files_are_for_one_user(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "a" / "b")
    folder.write("ray.token", b"x")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.file("ray.token").stat().st_mode) == 0o600
    assert folder.read("ray.token") == b"x"
    assert os.listdir(folder.path) == ["ray.token"]


def test_a_folder_that_others_see_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        ClusterFolder.create(tmp_path)
    with pytest.raises(ConfigError, match="expertmesh head"):
        ClusterFolder.find(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        ClusterFolder.create(tmp_path / "file")


def test_one_process_holds_it_and_its_death_lets_go(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    assert not folder.is_held()
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert folder.is_held()
        with pytest.raises(ConfigError, match=f"process {process.pid} uses it"), folder.held():
            pass
        process.kill()
    with folder.held():
        assert folder.is_held()
    assert not folder.is_held()


def test_a_file_is_whole_after_kill_9(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITES, str(folder.path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writes\n"
            while not folder.has("ray.token"):
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
        data = folder.read("ray.token")
        assert len(data) == 4096
        assert len({*data}) == 1
        folder.write("ray.token", data)
        assert len(os.listdir(folder.path)) == 1, "what was half written is gone"


def test_a_membership_survives_its_file(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    ports = NodePorts(7000, PortRange(8000, 8010), PortRange(9000, 9010))
    made = Membership("10.0.0.1:6379", "10.0.0.2", is_head=False, has_tls=True, ports=ports)
    folder.remember(made)
    assert folder.membership() == made


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"head": "x"}', b'{"head": "a:b", "address": 1}'])
def test_a_broken_membership_is_named(tmp_path: Path, text: bytes) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    with pytest.raises(ConfigError):
        folder.membership()
    folder.write("cluster.json", text)
    with pytest.raises(ConfigError, match=r"cluster\.json: cannot be read; start head or join again"):
        folder.membership()


def test_a_machine_that_cannot_leave_stays(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    with folder.leaving():
        assert folder.is_leaving
    assert folder.is_leaving, "for the joiner to see"
    folder.stays()
    with pytest.raises(KeyError), folder.leaving():
        raise KeyError
    assert not folder.is_leaving


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    with pytest.raises(ConfigError, match="there is no home folder"):
        ClusterFolder.create(Path("~/x"))


def test_the_environment_of_a_node_is_ours_and_more(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    made = Membership("10.0.0.1:6379", "10.0.0.2", is_head=False, has_tls=False, ports=NodePorts())
    ours = {"PATH": "/bin", "RAY_ADDRESS": "x", "RAY_AUTH_TOKEN": "secret", "RAY_USE_TLS": "1"}
    found = node_environment(folder, made, ours)
    assert found["PATH"] == "/bin"
    assert not found.keys() & {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_USE_TLS", "RAY_TLS_CA_CERT"}
    assert found["RAY_AUTH_MODE"] == "token"


def test_the_environment_has_paths_and_no_secret(tmp_path: Path) -> None:
    folder = ClusterFolder.create(tmp_path / "c")
    folder.write("ray.token", b"the secret")
    made = Membership("10.0.0.1:6379", "10.0.0.2", is_head=False, has_tls=True, ports=NodePorts())
    found = folder.environment(made)
    assert "the secret" not in str(found)
    assert found["RAY_AUTH_TOKEN_PATH"] == str(folder.file("ray.token"))
    assert found["RAY_AUTH_TOKEN"] is None
    assert found["EXPERTMESH_CLUSTER"] == str(folder.path)
    assert found["EXPERTMESH_DATA_PORTS"] == "20100-20199"
    assert found["RAY_TLS_CA_CERT"] == str(folder.file("ca.pem"))
    plain = Membership("10.0.0.1:6379", "10.0.0.2", is_head=False, has_tls=False, ports=NodePorts())
    assert folder.environment(plain)["RAY_USE_TLS"] is None
    assert folder.environment(plain)["RAY_TLS_CA_CERT"] is None
