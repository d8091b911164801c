"""The machines of a running Ray cluster, one after the other, and the network between each two of them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path as File
from typing import Any

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.server_process import ROOT, cli_module, environment_of
from expert_workers.cluster.ray_cluster import RayCluster
from moe_model.errors import ClusterError
from scaling.machines import Machine, Machines, Path
from scaling.probe.link_bench import LARGE, MIDDLE, SMALL, Served, round_trips
from scaling.probe.passes import Depth
from scaling.strict import read

Say = Callable[[str], None]
# Of one pass.
_MACHINE_S = 900.0
_LINK_S = 120.0
# Of what a large call takes longer than a small one: at least so much is on the way.
_LEAST_SHARE = 0.05
_BUDGET_S = 1.0


class Prober:
    """An actor on one machine."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._served: Served | None = None

    def host_name(self) -> str:
        return os.uname().nodename

    def address(self) -> str:
        """In the cluster."""
        return self._host

    def machine(self, arguments: Sequence[str], timeout: float) -> bytes:
        """What `expertmesh probe` finds there, in a process of its own: this one has a Ray already. Raises
        RuntimeError with its last lines, and subprocess.TimeoutExpired."""
        with tempfile.TemporaryDirectory(prefix="expertmesh-probe-") as folder:
            out = File(folder) / "machines.json"
            command = [sys.executable, "-P", "-m", cli_module(ROOT), "probe", "--out", str(out), *arguments]
            environment = {k: v for k, v in environment_of(ROOT).items() if not k.startswith("RAY_")}
            done = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"a machine could not be measured: {(done.stdout + done.stderr)[-800:]}")
            return msgspec.json.encode(read(out, Machines).machines[0])

    def serve(self) -> Any:
        """Where others reach a worker of this machine."""
        self._served = Served(self._host)
        return self._served.endpoint

    def round_trips(self, endpoint: Any) -> dict[int, float]:
        return round_trips(endpoint, (SMALL, MIDDLE, LARGE), _BUDGET_S)


def probe_cluster(
    address: str,
    depth: Depth,
    say: Say,
    *,
    names: bool = False,
    addresses: bool = False,
    insecure: bool = False,
) -> Machines:
    """Machines are named m0, m1, ..., by their own names (`names`), or by their nodes' addresses, of which
    each has another (`addresses`). Raises ClusterError where the cluster cannot be reached or a machine of it
    cannot be measured."""
    cluster = RayCluster.connect(address, insecure=insecure)
    try:
        with probers() as found:
            try:
                return _measured(found, depth, say, names=names, addresses=addresses)
            except (ray.exceptions.RayError, RuntimeError) as error:
                raise ClusterError(" ".join(str(error).split())[-400:]) from error
    finally:
        cluster.close()


def path_of(one: str, other: str, seconds: dict[int, float], here: dict[int, float]) -> Path:
    """Of round trips by their bytes. `here`: of the same calls within a machine, which are what both ends
    compute; costs of a call have that already (`call_us`, `worker_us`, `byte_ns`), so it is taken off. What a
    large call takes longer than a small one is its bytes' way there and back, one after the other."""
    between = {size: seconds[size] - here[size] for size in (SMALL, LARGE)}
    # The rest of two measurements that are nearly alike is noise: the network has a part of it in any case.
    longer = max(between[LARGE] - between[SMALL], _LEAST_SHARE * (seconds[LARGE] - seconds[SMALL]), 1e-9)
    round_trip_s = max(between[SMALL], 0.0)
    return Path((one, other), 8e-9 * 2 * (LARGE - SMALL) / longer, 1e6 * round_trip_s)


def with_paths(machines: Machines, paths: Sequence[Path]) -> Machines:
    """The machines with paths that were measured some other way, as over an emulated network; they replace
    those between the same two. Raises ValueError for a path to no machine of them."""
    known = {frozenset(path.between) for path in paths}
    kept = tuple(path for path in machines.paths if frozenset(path.between) not in known)
    return msgspec.structs.replace(machines, paths=(*kept, *paths))


@contextmanager
def probers() -> Iterator[list[Any]]:
    """One on each machine that is there; they end with the block. Raises ClusterError where there is none."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if not nodes:
        raise ClusterError("the cluster has no machine")
    probers = [
        ray.remote(Prober)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(node["NodeManagerAddress"])
        for node in nodes
    ]
    try:
        yield probers
    finally:
        for prober in probers:
            ray.kill(prober)  # type: ignore[arg-type]


def _measured(probers: Sequence[Any], depth: Depth, say: Say, *, names: bool, addresses: bool) -> Machines:
    """One at a time, so that none disturbs another."""
    found: list[Machine] = []
    timeout = _MACHINE_S * depth.num_passes
    for number, prober in enumerate(probers):
        name = f"m{number}"
        if names or addresses:
            asked = prober.address if addresses else prober.host_name
            name = ray.get(asked.remote(), timeout=_LINK_S)
        say(f"machine {number + 1} of {len(probers)}")
        data = ray.get(prober.machine.remote(depth.arguments, timeout), timeout=timeout + 30)
        found.append(msgspec.structs.replace(msgspec.json.decode(data, type=Machine), name=name))
    say(f"the network between {len(probers)} machines")
    endpoints = [ray.get(prober.serve.remote(), timeout=_LINK_S) for prober in probers]
    here = [
        ray.get(prober.round_trips.remote(endpoint), timeout=_LINK_S)
        for prober, endpoint in zip(probers, endpoints, strict=True)
    ]
    paths = []
    for one, other in combinations(range(len(probers)), 2):
        seconds = ray.get(probers[one].round_trips.remote(endpoints[other]), timeout=_LINK_S)
        both = {size: (here[one][size] + here[other][size]) / 2 for size in seconds}
        paths.append(path_of(found[one].name, found[other].name, seconds, both))
    return Machines(tuple(found), tuple(paths))
