"""Ray over several hosts: it starts with a token, ends without a trace, and a lost node starts anew."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.hosts.left_over import short_temp_dir
from scaling.hosts.links import partition
from scaling.hosts.namespaces import Network
from scaling.hosts.ray_hosts import QUICK_HEALTH_CHECKS, RayHosts, pids_of, wait_until
from tests.integration.processes import wait_gone

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240), pytest.mark.usefixtures("capable")]

# An actor on each worker's host, which says where it is and how nice.
ACTORS = """
import os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1)
class Where:
    def where(self): return ray.util.get_node_ip_address(), os.nice(0)
actors = [Where.remote() for _ in range(2)]
print("PLACES", *sorted({ray.get(actor.where.remote(), timeout=60) for actor in actors}), sep="|")
"""


@pytest.fixture
def network(capable: None) -> Iterator[Network]:
    with Network() as network:
        yield network


def start_ray(network: Network, **options: object) -> RayHosts:
    head, *workers = (network.host(name) for name in ("head", "w0", "w1"))
    return RayHosts(head, workers, **options)  # type: ignore[arg-type]


def folders() -> set[Path]:
    return set(short_temp_dir().glob(f"emx{os.getpid()}-*"))


def run_actors(ray: RayHosts, **changed: str) -> subprocess.CompletedProcess[str]:
    command = ray.head.command(sys.executable, "-c", ACTORS, ray.address)
    env = {**ray.env, **changed}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_actors_run_on_the_other_hosts_and_nothing_is_left(network: Network) -> None:
    before = folders()
    with start_ray(network) as ray:
        first, second = ray.workers
        done = run_actors(ray)
        nice = os.nice(0)
        places = f"PLACES|('{first.address}', {nice})|('{second.address}', {nice})"
        assert places in done.stdout, done.stderr[-2000:]
        token = Path(ray.env["RAY_AUTH_TOKEN_PATH"])
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
        pids = {pid for host in (ray.head, *ray.workers) for pid in host.pids()}
        os.kill(ray.raylet(first), signal.SIGSTOP)
        assert folders() > before
    assert len(pids) > 9
    assert wait_gone(pids) == set()
    assert folders() == before


def test_without_the_token_nobody_is_let_in(network: Network, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    with start_ray(network) as ray:
        refused = run_actors(ray, RAY_AUTH_TOKEN_PATH=str(wrong))
        assert refused.returncode != 0
        assert "PLACES" not in refused.stdout
        assert "oken" in refused.stderr, refused.stderr[-2000:]


def test_a_node_whose_raylet_was_killed_starts_anew(network: Network) -> None:
    with start_ray(network) as ray:
        first, second = ray.workers
        ray.kill_raylet(first)
        ray.wait_down(first, 30.0)
        wait_until(lambda: not pids_of(first, "ray::"), 10.0, "Ray's other processes are still there")
        assert ray.is_up(second)
        ray.restart(first)
        assert sum(is_alive for address, is_alive in ray.nodes() if address == second.address) == 1
        assert "PLACES" in run_actors(ray).stdout


def test_a_supervisor_starts_a_node_that_was_cut_off_for_too_long(network: Network) -> None:
    with start_ray(network, system_config=QUICK_HEALTH_CHECKS) as ray, ray.supervised() as restarts:
        host = ray.workers[0]
        with partition(host):
            wait_until(lambda: (host.address, False) in ray.nodes(), 60.0, "the head takes it for alive")
        wait_until(lambda: host in restarts and ray.is_started(host), 60.0, "it did not start anew")
        assert restarts.count(host) == 1
        assert (host.address, True) in ray.nodes()
