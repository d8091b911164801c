"""A real Prometheus scrapes a live server under load: every rule and every panel has data, alerts fire and
resolve. The files are those of deploy/monitoring; times are shorter, as live_prometheus.py says."""

import hashlib
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from benchmarks import process_tree
from coordinator.config.security import TlsConfig
from expertmesh import Client, ControlClient
from expertmesh.connection import Connection
from expertmesh.v1 import control_pb2 as pb
from tests.coordinator.api.certificates import DAY, Authority, write_private
from tests.deploy.live_prometheus import Prometheus, without_thresholds
from tests.deploy.monitoring import metrics_of, panels, rules
from tests.deploy.tools import run
from tests.integration.processes import DEMO_CHECKPOINT, Server

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

KEY = "a-key-for-everything-that-tests-do"


@dataclass
class Live:
    """A server with TLS and keys, and what watches it. Its certificate ends tomorrow."""

    server: Server
    prometheus: Prometheus
    authority: Authority
    tls: TlsConfig
    connection: Connection

    def metrics(self) -> str:
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        url = f"https://{self.server.address_of('metrics')}/metrics"
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.get(url, headers=headers, verify=context, trust_env=False).text

    def worker_pids(self) -> list[int]:
        """Of those that are ready."""
        with ControlClient(self.server.address_of("control"), connection=self.connection) as control:
            workers = control.topology()
        return [worker.pid for worker in workers if worker.state == pb.ExpertWorker.STATE_READY]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    authority, machines = Authority(), Authority("machines", ends=90 * DAY)
    tls, ca = authority.write(folder), write_private(folder / "ca.pem", authority.pem)
    key = write_private(folder / "metrics_key", b"a-key-for-prometheus-only")
    hashes = f"prometheus:{hashlib.sha256(key.read_bytes()).hexdigest()}\n"
    keys = write_private(folder / "keys", hashes.encode())
    options = [
        "--workers",
        "2",
        "--replicas",
        "2",
        "--model-name",
        "demo",
        "--metrics-address",
        "127.0.0.1:0",
    ]
    files = ["--tls-cert", str(tls.cert), "--tls-key", str(tls.key), "--api-key-file", str(keys)]
    certificate, private = machines.sign(ends=90 * DAY)
    for name, data in (("cert", certificate), ("key", private), ("ca", machines.pem)):
        files += [f"--data-tls-{name}", str(write_private(folder / f"data-{name}.pem", data))]
    env = {"EXPERTMESH_API_KEY": KEY}
    with Server(str(DEMO_CHECKPOINT), *options, *files, log=folder / "log", env=env) as server:
        server.wait_ready()
        connection = Connection(ca=ca, api_key=KEY)
        target = server.address_of("metrics")
        with (
            load(server, connection),
            Prometheus(folder / "prometheus", target, ca, key) as prometheus,
        ):
            prometheus.until(lambda: prometheus.values('up{job="expertmesh"}') == [1.0])
            yield Live(server, prometheus, authority, tls, connection)


@contextmanager
def load(server: Server, connection: Connection) -> Iterator[None]:
    """Two callers, one of gRPC and one of HTTP, each with one request after the other."""
    ended = threading.Event()
    ca = ssl.create_default_context(cafile=str(connection.ca))

    def grpc() -> None:
        with Client(server.address, connection=connection) as client:
            while not ended.is_set():
                client.generate("def main():", max_tokens=16)

    def http() -> None:
        url = f"https://{server.address_of('http')}/v1/completions"
        body = {"model": "demo", "prompt": "def main():", "max_tokens": 16}
        with httpx.Client(verify=ca, headers={"authorization": f"Bearer {KEY}"}, trust_env=False) as client:
            while not ended.is_set():
                assert client.post(url, json=body, timeout=60).status_code == 200

    threads = [threading.Thread(target=each) for each in (grpc, http)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_promtool_has_nothing_to_say_of_the_metrics(live: Live) -> None:
    found = run("promtool", "check", "metrics", text=live.metrics())
    assert (found.code, found.output) == (0, "")


def test_promtool_would_say_something(live: Live) -> None:
    text = live.metrics().replace("_readiness_losses_total", "_readiness_losses")
    assert "should have" in run("promtool", "check", "metrics", text=text).output


@pytest.mark.parametrize("name", [rule.get("alert") or rule["record"] for rule in rules()])
def test_every_rule_has_data(live: Live, name: str) -> None:
    (rule,) = (rule for rule in rules() if name in (rule.get("alert"), rule.get("record")))
    whole = without_thresholds(rule["expr"])
    live.prometheus.until(lambda: live.prometheus.has_numbers(whole))
    for metric in metrics_of(rule["expr"]):
        assert live.prometheus.has_numbers(metric), metric
    live.prometheus.until(
        lambda: {r["health"] for r in live.prometheus.rules() if r["name"] == name} == {"ok"}
    )


@pytest.mark.parametrize("expression", list(dict.fromkeys(panels())))
def test_every_panel_has_data(live: Live, expression: str) -> None:
    filled = (
        expression.replace("$__rate_interval", "1m").replace("$job", "expertmesh").replace("$instance", ".*")
    )
    assert "$" not in filled
    live.prometheus.until(lambda: live.prometheus.has_numbers(filled))


def test_an_expression_without_data_would_be_found(live: Live) -> None:
    """Of a metric that nobody shows, and a quantile of nothing."""
    assert not live.prometheus.has_numbers('expertmesh_ready{job="another"}')
    assert not live.prometheus.has_numbers("histogram_quantile(0.5, 0 * expertmesh_step_seconds_bucket)")


def test_each_kind_of_certificate_is_known(live: Live) -> None:
    """Between machines: of the workers too, which say so themselves."""
    for kind, days in (("server", 1), ("data", 90)):
        left = f'expertmesh_certificate_expiry_timestamp_seconds{{certificate="{kind}"}} - time()'
        assert live.prometheus.values(left) == [pytest.approx(days * DAY.total_seconds(), abs=600)]


def test_a_lost_worker_fires_and_resolves(live: Live) -> None:
    """One that cannot come back, since the process that would start it stands still; then it goes on."""
    name = "ExpertMeshWorkerLost"
    live.prometheus.until(lambda: len(live.worker_pids()) == 2)
    assert live.prometheus.firing(name) == []
    tree = process_tree.tree(live.server.process.pid)
    (raylet,) = (each.pid for each in tree if each.command and each.command[0].endswith("/raylet"))
    os.kill(raylet, signal.SIGSTOP)
    try:
        os.kill(live.worker_pids()[0], signal.SIGKILL)
        live.prometheus.until(lambda: live.prometheus.firing(name))
        (alert,) = live.prometheus.firing(name)
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["summary"].startswith("1 expert workers of 127.0.0.1:")
    live.prometheus.until(lambda: len(live.worker_pids()) == 2)
    live.prometheus.until(lambda: live.prometheus.firing(name) == [])


def test_a_certificate_that_is_about_to_end_fires_and_a_new_one_resolves(live: Live) -> None:
    names = ("ExpertMeshCertificateExpiring", "ExpertMeshCertificateAlmostExpired")
    live.prometheus.until(lambda: all(map(live.prometheus.firing, names)))
    (alert,) = live.prometheus.firing(names[1])
    assert alert["annotations"]["summary"].startswith("A certificate (server) of 127.0.0.1:")
    live.authority.write(live.tls.cert.parent, ends=90 * DAY)
    live.prometheus.until(lambda: not any(map(live.prometheus.firing, names)))
