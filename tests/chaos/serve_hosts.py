"""`expertmesh serve` on the head of a RayHosts, its experts on the other hosts, and clients in the test.

The test is a host of its own as far as the network goes, so a client is not cut off with the workers.
"""

import urllib.request
from pathlib import Path

from expertmesh import ControlClient
from scaling.hosts.ray_hosts import RayHosts, pids_of
from tests.integration.processes import DEMO_CHECKPOINT, Server

_ACTOR = "ray::ExpertActor"


class ServeHosts(Server):
    """A context manager; `wait_ready` before it is used."""

    def __init__(
        self,
        ray: RayHosts,
        *arguments: str,
        log: Path,
        env: dict[str, str] | None = None,
    ) -> None:
        """A worker for each host but the head. `env` is added to that of Ray's drivers."""
        head = ray.head.address
        self.ray = ray
        super().__init__(
            str(DEMO_CHECKPOINT),
            f"--workers={len(ray.workers)}",
            f"--ray-address={ray.address}",
            # Plain, on an address that is not loopback: this network has no one else.
            "--insecure",
            *(f"--{name}-address={head}:0" for name in ("grpc", "http", "control")),
            *arguments,
            log=log,
            env={**ray.env, **(env or {})},
            prefix=ray.head.command(),
        )

    def actors(self) -> dict[str, list[int]]:
        """The pids of the expert workers on each host that has any."""
        hosts = (self.ray.head, *self.ray.workers)
        return {host.name: pids for host in hosts if (pids := pids_of(host, _ACTOR))}

    def workers(self) -> dict[int, int]:
        """The pid of each worker that has a process, by rank, as the coordinator knows them."""
        with ControlClient(self.address_of("control")) as control:
            return {worker.rank: worker.pid for worker in control.topology() if worker.pid}

    def metrics(self) -> dict[str, float]:
        """Each series by its name with its labels, as it is exposed."""
        with _DIRECT.open(f"http://{self.address_of('http')}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        parts = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in parts}

    def total(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        return sum(value for series, value in self.metrics().items() if series.split("{")[0] == name)

    def num_ready(self) -> int:
        """How many workers the coordinator takes for ready."""
        return int(self.total("expertmesh_expert_worker_up"))

    def num_losses(self) -> int:
        """How often a worker was lost, for whatever reason."""
        return int(self.total("expertmesh_expert_worker_losses_total"))

    def is_ready(self) -> bool:
        try:
            _DIRECT.open(f"http://{self.address_of('http')}/readyz", timeout=5).close()
        except OSError:
            return False
        return True


# No proxy leads to these hosts.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
