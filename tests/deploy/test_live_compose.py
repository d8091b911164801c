"""Ray's services of compose.yaml, run: they come up in order, serve, lose a worker, drain, start again."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.hosts.namespaces import Network, missing_capability
from scaling.hosts.ray_hosts import wait_until
from tests.deploy.compose_hosts import COMPOSE, PATIENCE, ComposeHost, compose_hosts, service
from tests.deploy.tools import ROOT
from tests.integration.processes import DEMO_CHECKPOINT, run_command

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing_capability() != "", reason=missing_capability()),
]

PROMPT = ("--prompt", "def main():", "--max-tokens", "8", "--temperature", "0")
NO_CAPABILITIES = "CapEff:\t0000000000000000"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    made = subprocess.run(
        [COMPOSE.parent / "secrets.sh", folder], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def hosts(secrets: Path) -> Iterator[dict[str, ComposeHost]]:
    """All up, in the order that the file asks for."""
    with Network() as network:
        hosts = compose_hosts(network, secrets)
        for names in (["head"], ["worker-1", "worker-2"], ["coordinator"]):
            for name in names:
                for needed in service(name).get("depends_on", {}):
                    hosts[needed].wait_healthy()
                hosts[name].start()
        wait_ready(hosts["coordinator"], 1)
        yield hosts


def wait_ready(coordinator: ComposeHost, times: int) -> None:
    def is_ready() -> bool:
        assert coordinator.process.poll() is None, coordinator.log
        return coordinator.log.count("READY ") == times

    wait_until(is_ready, PATIENCE, f"not ready:\n{coordinator.log[-3000:]}")


def asked(coordinator: ComposeHost, secrets: Path, *command: str) -> str:
    """`expertmesh COMMAND` as README.md has it, on the coordinator's host, as a person there."""
    with_key = (*command, "--tls-ca", str(secrets / "ca.pem"), "--api-key-file", str(secrets / "admin_key"))
    return coordinator.host.run(str(ROOT / ".venv" / "bin" / "expertmesh"), *with_key)


def grace(host: ComposeHost) -> float:
    """Seconds that an engine waits after SIGTERM."""
    return float(host.service["stop_grace_period"].removesuffix("s"))


def generate(coordinator: ComposeHost, secrets: Path) -> str:
    return asked(coordinator, secrets, "client", "localhost:50051", *PROMPT)


def workers(coordinator: ComposeHost, secrets: Path) -> dict[str, int]:
    """The process of each worker that is ready, by its machine."""
    shown = json.loads(asked(coordinator, secrets, "top", "localhost:50052", "--once", "--json"))
    return {each["host"]: each["pid"] for each in shown["workers"] if each["state"] == "ready"}


def test_secrets_are_made_once_and_a_certificate_anew(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir() if path.is_file()}
    owners = {path.name: path.stat().st_uid for path in secrets.iterdir()}
    assert (owners["server.key"], owners["metrics_key"], owners["grafana_password"]) == (10001, 65534, 472)
    assert {path.stat().st_mode & 0o077 for path in secrets.iterdir() if path.name not in ("ca.pem",)} == {0}
    (secrets / "server.pem").unlink()
    subprocess.run([COMPOSE.parent / "secrets.sh", secrets], check=True)
    after = {path.name: path.read_bytes() for path in secrets.iterdir() if path.is_file()}
    assert {name for name in after if after[name] != before[name]} == {"server.pem"}


def test_they_serve_from_two_machines(hosts: dict[str, ComposeHost], secrets: Path) -> None:
    coordinator = hosts["coordinator"]
    alone = run_command("generate", str(DEMO_CHECKPOINT), *PROMPT)
    assert alone.stdout
    assert generate(coordinator, secrets) == alone.stdout
    places = {hosts[name].host.address for name in ("worker-1", "worker-2")}
    assert set(workers(coordinator, secrets)) == places
    assert "replicas=2" in coordinator.log
    coordinator.wait_healthy()


def test_what_runs_may_do_nothing_else(hosts: dict[str, ComposeHost]) -> None:
    for host in hosts.values():
        assert NO_CAPABILITIES in host.run("cat", "/proc/self/status").stdout
        assert host.run("id", "-u").stdout == "10001\n"
        for place in ("/", "/etc", "/var/tmp", "/run/secrets", str(ROOT)):
            assert "Read-only" in host.run("touch", f"{place}/x").stderr
        assert host.run("touch", "/tmp/x").returncode == 0
        assert host.run("ls", "/run/secrets").stdout.split() == sorted(host.service["secrets"])


def test_a_worker_that_goes_costs_no_request(hosts: dict[str, ComposeHost], secrets: Path) -> None:
    coordinator, worker = hosts["coordinator"], hosts["worker-1"]
    before, answers, ended = (
        workers(coordinator, secrets),
        [generate(coordinator, secrets)],
        threading.Event(),
    )

    def ask() -> None:
        while not ended.is_set():
            answers.append(generate(coordinator, secrets))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        worker.stop(grace(worker))
        assert set(workers(coordinator, secrets)) == {hosts["worker-2"].host.address}
        worker.start()
        wait_until(lambda: len(workers(coordinator, secrets)) == 2, PATIENCE, coordinator.log[-3000:])
    finally:
        ended.set()
        asking.join()
    after = workers(coordinator, secrets)
    assert [after[place] == pid for place, pid in before.items()].count(True) == 1, "one is another process"
    assert len(answers) > 2
    assert set(answers) == {answers[0]}


def test_a_coordinator_that_starts_again_finds_its_workers(
    hosts: dict[str, ComposeHost], secrets: Path
) -> None:
    coordinator = hosts["coordinator"]
    before, expected = workers(coordinator, secrets), generate(coordinator, secrets)
    assert coordinator.stop(grace(coordinator)) == 0
    coordinator.start()
    wait_ready(coordinator, 2)
    assert workers(coordinator, secrets) == before
    assert generate(coordinator, secrets) == expected
