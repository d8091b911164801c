"""The chart's pods, run for real: a coordinator with Ray's head, two workers. They serve, lose one, and end.

As root, with iproute2; on networks between namespaces, as kubelet and KubeRay's operator would start them.
"""

import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.api.security.api_keys import key_of
from expertmesh import Client
from expertmesh.connection import Connection
from expertmesh.errors import ClientError
from scaling.hosts.namespaces import Network, missing_capability
from tests.coordinator.api.certificates import Authority, write_private
from tests.deploy import network_policy
from tests.deploy.chart import LEAST, Values, merged, rendered
from tests.deploy.pods import Object, containers, of_kind, pods
from tests.deploy.run_pods import Pod
from tests.deploy.tools import ROOT
from tests.integration.ray_cluster import wait_listening

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(400)]

KEY = "em-alice-alice-alice"
START, END = 120.0, 30.0
SMALL = {"cpu": "1", "memory": "2Gi"}
VALUES: Values = {
    "model": {"source": "/models/model"},
    "workers": {
        "replicas": 2,
        "copies": 2,
        "resources": {"requests": SMALL, "limits": SMALL},
        "leaveTimeout": 40,
    },
    "coordinator": {
        "args": ["--threads=1", "--worker-threads=1"],
        "dtype": "float32",
        "withdrawalGrace": 1,
        "drainTimeout": 20,
    },
}
# What the network policy lets through, health, for the node's own probes, and Ray Client, which it does not.
OPEN = {6379, *range(6381, 6387), *range(20000, 20200), 50051, 50053, 8000, 9100, network_policy.RAY_CLIENT}
PROMPT, TOKENS = "def main():", 64


@dataclass(frozen=True)
class Release:
    """Its pods, which run, and what a client needs."""

    coordinator: Pod
    workers: list[Pod]
    ca: Path
    with_model: bool
    # What KubeRay would have containers run, by group; nothing without it.
    starts: Mapping[str, list[str]]

    @property
    def head(self) -> str:
        return "demo-head-svc:6379" if self.starts else "demo-ray:6379"

    def start_worker(self, pod: Pod) -> None:
        """Returns when it is ready, as its probe has it."""
        process = pod.start("ray-worker", self.starts.get("workers"), RAY_ADDRESS=self.head)
        wait_listening(6381, process, START, pod.host.address)

    def replace_worker(self, number: int) -> None:
        """As a StatefulSet or a RayCluster does: the old one ends, then another starts on its node."""
        self.workers[number].stop("ray-worker", RAY_ADDRESS=self.head)
        self.workers[number] = self.workers[number].again()
        self.start_worker(self.workers[number])

    def client(self) -> Client:
        connection = Connection(ca=self.ca, api_key=KEY)
        return Client(f"{self.coordinator.host.address}:50051", connection=connection)

    def generate(self, max_tokens: int = TOKENS) -> str:
        with self.client() as client:
            return client.generate(PROMPT, max_tokens=max_tokens, temperature=0.0, ignore_eos=True).text

    def experts(self) -> set[int]:
        """The processes that hold experts."""
        return {
            pid
            for pod in self.workers
            for pid in pod.host.pids()
            if "ExpertActor" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
        }

    def logs(self) -> str:
        return "\n".join(pod.log(name) for pod in (self.coordinator, *self.workers) for name in pod.running)


@pytest.fixture(params=[("plain", True), ("raycluster", False)], ids=lambda each: str(each[0]))
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Release]:
    if missing := missing_capability():
        pytest.fail(f"pods cannot be run: {missing}")
    mode, on_workers = request.param
    changes = {"mode": mode, "model": {"onWorkers": on_workers}}
    objects = rendered(merged(LEAST, merged(VALUES, changes)))
    with Network() as network:
        yield started(objects, network, tmp_path, on_workers=on_workers)


def started(objects: list[Object], network: Network, folder: Path, *, on_workers: bool) -> Release:
    templates = dict(pods(objects))
    head, worker = templates.values()
    hosts = [network.host(name) for name in ("head", "one", "two")]
    names = {"demo-ray": hosts[0].address, "demo-head-svc": hosts[0].address}
    places = volumes(folder, hosts[0].address)
    made = []
    for host, template in zip(hosts, (head, worker, worker), strict=True):
        own = folder / host.name.rpartition("-")[2]
        own.mkdir()
        (own / "cache").mkdir()
        seen = {path: place for path, place in places.items() if _is_mounted(template, path)}
        made.append(Pod(host, template, own, {**seen, "/cache": str(own / "cache")}, names))
    starts = ray_starts(objects)
    release = Release(made[0], made[1:], folder / "ca.pem", on_workers, starts)
    ray = release.coordinator.start("ray-head", starts.get("head"))
    if not starts:
        # A sidecar is waited for.
        wait_listening(6379, ray, START, hosts[0].address)
    release.coordinator.start("coordinator")
    for pod in release.workers:
        release.start_worker(pod)
    with Client(f"{hosts[0].address}:50053") as probe:
        try:
            probe.wait_ready(START)
        except ClientError as error:
            raise AssertionError(f"{error}\n{release.logs()}") from None
    return release


def _is_mounted(template: Object, path: str) -> bool:
    return any(
        mount["mountPath"].startswith(path.rpartition("/")[0]) or path.startswith(mount["mountPath"])
        for container in containers(template)
        for mount in container["volumeMounts"]
    )


def volumes(folder: Path, address: str) -> dict[str, str]:
    """Where secrets and the model are, by their paths in containers."""
    authority, mounted = Authority(), folder / "secrets"
    (folder / "ca.pem").write_bytes(authority.pem)
    certificate, key = authority.sign(addresses=(address,))
    line = key_of("alice", KEY).line().encode()
    files = {"ray/token": secrets.token_hex(32).encode(), "keys/keys": line}
    for name, data in {**files, "tls/tls.crt": certificate, "tls/tls.key": key}.items():
        (mounted / name).parent.mkdir(parents=True, exist_ok=True)
        write_private(mounted / name, data)
    # Not where it is in the tree, which every pod sees.
    shutil.copytree(ROOT / "demo" / "checkpoint", folder / "model")
    return {"/etc/expertmesh": str(mounted), "/models/model": str(folder / "model")}


def ray_starts(objects: list[Object]) -> dict[str, list[str]]:
    """What KubeRay's operator has its containers run, by group: as its pod.go makes it of parameters."""
    found = {}
    for cluster in of_kind(objects, "RayCluster"):
        groups = {"head": cluster["spec"]["headGroupSpec"]}
        groups |= {each["groupName"]: each for each in cluster["spec"]["workerGroupSpecs"]}
        for name, group in groups.items():
            parameters = dict(group["rayStartParams"])
            if name == "head":
                parameters["dashboard-host"] = "0.0.0.0"
            else:
                parameters |= {"address": "demo-head-svc:6379", "num-cpus": SMALL["cpu"]}
            options = " ".join(
                f"--{key}" if value == "true" else f"--{key}={value}" for key, value in parameters.items()
            )
            start = f"ray start {'--head ' if name == 'head' else ''}{options} --block"
            wait = (
                ""
                if name == "head"
                else "until (exec 3<>/dev/tcp/demo-head-svc/6379) 2>/dev/null; do sleep 1; done; "
            )
            found[name] = ["/bin/bash", "-c", f"ulimit -n 65536; {wait}{start}"]
    return found


@contextmanager
def under_load(release: Release, golden: str) -> Iterator[None]:
    """Two callers go on all the time; none is refused, and each gets the same as ever."""
    is_over = threading.Event()

    def call() -> list[str]:
        found = [release.generate()]
        while not is_over.is_set():
            found.append(release.generate())
        return found

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(call) for _ in range(2)]
        try:
            yield
        finally:
            is_over.set()
        for caller in callers:
            texts = caller.result()
            assert len(texts) > 5
            assert set(texts) == {golden}


def test_pods_come_up_are_replaced_and_end(release: Release) -> None:
    golden = release.generate()
    before = release.experts()
    model = release.ca.with_name("model")
    assert [pod.sees(model) for pod in (release.coordinator, *release.workers)] == [
        True,
        *[release.with_model] * 2,
    ]
    # One worker on each machine, so that copies are on two.
    assert [len(pod.host.pids() & before) for pod in release.workers] == [1, 1]
    for pod in (release.coordinator, *release.workers):
        assert pod.ports() - OPEN == set(), pod.host.run("ss", "-ltnp")

    with under_load(release, golden):
        release.replace_worker(0)
        release.replace_worker(1)
    assert release.generate() == golden
    assert release.experts() & before == set()

    # The coordinator's pod ends: Ray's head goes last, by itself, with its own code.
    assert release.coordinator.stop("coordinator") == 0, release.logs()
    assert release.coordinator.stop("ray-head") >= 0, release.logs()


def test_a_coordinator_that_crashes_finds_its_workers(release: Release) -> None:
    golden, before = release.generate(), release.experts()
    assert len(before) == len(release.workers)
    process: subprocess.Popen[Any] = release.coordinator.running["coordinator"]
    process.kill()
    process.wait(END)
    release.coordinator.start("coordinator")
    with Client(f"{release.coordinator.host.address}:50053") as probe:
        probe.wait_ready(START)
    assert release.generate() == golden
    assert release.experts() == before
