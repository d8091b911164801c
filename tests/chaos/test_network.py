"""The product on a network that fails: what clients see while load runs through the fault.

Every scenario asserts that its fault has happened: a Fault that did nothing is an error when it is healed.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaling.hosts.links import Bandwidth, Delay, Fault, loss, one_way, partition, reset
from scaling.hosts.namespaces import Host, Network
from scaling.hosts.ray_hosts import QUICK_HEALTH_CHECKS, RayHosts, wait_until
from tests.chaos.load import OK, Golden, Load, check, gaps, golden_of
from tests.chaos.serve_hosts import ServeHosts
from tests.integration.processes import DEMO_CHECKPOINT, Server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240), pytest.mark.usefixtures("capable")]

CALL_TIMEOUT = 1.0
WAIT_TIMEOUT = 30.0
# For what must come to pass; how soon it does is the machine's.
PATIENCE = 100.0
UNAVAILABLE = "UNAVAILABLE"
NUM_LAYERS = 4


@pytest.fixture(scope="module")
def golden(capable: None, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """What one process answers, without any network."""
    log = tmp_path_factory.mktemp("golden") / "log"
    with Server(str(DEMO_CHECKPOINT), "--workers=0", log=log) as server:
        server.wait_ready()
        return golden_of(server.address)


@dataclass(frozen=True, slots=True)
class Service:
    """A coordinator with two workers, each on a host of its own."""

    ray: RayHosts
    server: ServeHosts
    restarts: list[Host]

    @property
    def workers(self) -> tuple[Host, ...]:
        return self.ray.workers

    def wait_all_ready(self, timeout: float) -> float:
        """Seconds until every worker is ready."""
        started = time.monotonic()
        num = len(self.workers)
        wait_until(lambda: self.server.num_ready() == num, timeout, f"not {num} workers ready")
        return time.monotonic() - started

    def wait_rejoined(self, host: Host, timeout: float = 60.0) -> float:
        """Seconds until a node that was taken for dead, and so is one no more, has been started anew.

        Ray itself takes some 3 s of them on an idle machine, and several times as many on a busy one.
        """
        started = time.monotonic()

        def is_back() -> bool:
            return host in self.restarts and self.ray.is_started(host)

        wait_until(is_back, timeout, f"{host.name} did not rejoin")
        return time.monotonic() - started


@contextmanager
def service(
    log: Path,
    *arguments: str,
    is_relayed: bool = False,
    system_config: Mapping[str, Any] | None = None,
    env: dict[str, str] | None = None,
    num_replicas: int = 2,
) -> Iterator[Service]:
    options = [f"--replicas={num_replicas}", f"--call-timeout={CALL_TIMEOUT}", *arguments]
    options.append(f"--expert-wait-timeout={WAIT_TIMEOUT}")
    with Network() as network:
        head = network.host("head")
        workers = [network.host(f"w{rank}", is_relayed=is_relayed) for rank in range(2)]
        with (
            RayHosts(head, workers, system_config=system_config) as ray,
            ServeHosts(ray, *options, log=log, env=env) as server,
            ray.supervised() as restarts,
        ):
            server.wait_ready()
            # A fault of the test's own may have cost one of them its first process already.
            spread = {worker.name: 1 for worker in workers}
            wait_until(
                lambda: {name: len(pids) for name, pids in server.actors().items()} == spread,
                timeout=30,
                message="not each worker has a host of its own",
            )
            yield Service(ray, server, restarts)


@contextmanager
def loaded(running: Service, **options: Any) -> Iterator[Load]:
    """Load that has been answered before the fault begins."""
    with Load(running.server.address, **options) as load:
        load.wait_for_more(PATIENCE)
        load.usual_gap = max(stream.longest_gap for stream in load.streams if stream.status)
        yield load
    print(gaps(load.streams))


def hold(fault: Fault, seconds: float) -> None:
    with fault:
        time.sleep(seconds)


def longest_gap(load: Load) -> float:
    return max(stream.longest_gap for stream in load.streams)


def added_gap(load: Load) -> float:
    """Beyond four of the longest that there were before the fault, on this machine as busy as it is."""
    return longest_gap(load) - 4 * load.usual_gap


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The coordinator's; shown when the test fails."""
    path = tmp_path / "log"
    yield path
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    print("\n".join(line for line in lines if "request_log" not in line))


def test_without_faults_workers_on_hosts_are_one_model(golden: Golden, log: Path) -> None:
    with service(log) as running:
        with loaded(running) as load:
            load.wait_for_more()
        check(load.streams, golden)
        assert len(load.streams) >= 16
        assert running.server.num_losses() == 0
        assert {alive for _, alive in running.ray.nodes()} == {True}


def test_b1_a_worker_cut_off_costs_one_deadline_and_rejoins(golden: Golden, log: Path) -> None:
    with service(log, system_config=QUICK_HEALTH_CHECKS) as running:
        with loaded(running) as load:
            hold(partition(running.workers[0]), 10.0)
            node = running.wait_rejoined(running.workers[0])
            ready = running.wait_all_ready(PATIENCE)
            load.wait_for_more()
        check(load.streams, golden)
        assert running.server.num_losses() > 0
        assert added_gap(load) <= CALL_TIMEOUT + 0.5
        print(f"after the partition: the node back in {node:.1f} s, the workers {ready:.1f} s later")


def test_b2_a_worker_that_hears_and_is_not_heard(golden: Golden, log: Path) -> None:
    """With Ray's own health checks, which the node outlives."""
    with service(log) as running:
        with loaded(running) as load:
            hold(one_way(running.workers[0]), 10.0)
            running.wait_all_ready(PATIENCE)
            load.wait_for_more()
        check(load.streams, golden)
        assert running.server.num_losses() > 0
        assert added_gap(load) <= CALL_TIMEOUT + 0.5


def test_b3_a_reset_is_noticed_at_once(golden: Golden, log: Path) -> None:
    with service(log) as running:
        with loaded(running) as load:
            hold(reset(running.workers[0], running.ray.head), 1.0)
            running.wait_all_ready(PATIENCE)
            load.wait_for_more()
        check(load.streams, golden)
        assert running.server.num_losses() > 0
        assert added_gap(load) <= 0.5


def test_b4_packets_are_lost(golden: Golden, log: Path) -> None:
    """One in a hundred costs little; with one in five there is progress or a clean end, and no hang."""
    with service(log, f"--call-timeout={2 * CALL_TIMEOUT}") as running:
        for share in (0.01, 0.05, 0.20):
            with loaded(running) as load:
                usual = load.wait_for_more()
                with loss(running.workers[0], share):
                    started = time.monotonic()
                    while time.monotonic() - started < 10.0:
                        slow = load.wait_for_more(PATIENCE)
                running.wait_all_ready(PATIENCE)
                load.wait_for_more(PATIENCE)
            check(load.streams, golden, allowed=(OK,) if share < 0.2 else (OK, UNAVAILABLE))
            assert longest_gap(load) < WAIT_TIMEOUT + 5
            if share == 0.01:
                assert slow <= 3 * usual + 0.5


def test_b5_a_long_way_is_slow_and_no_failure(golden: Golden, log: Path) -> None:
    """A step takes a round trip for each layer; nobody counts as lost for that."""
    with service(log, is_relayed=True) as running:
        for delay, max_tokens in ((0.025, 16), (0.1, 4)):
            check_delayed(running, golden, delay, max_tokens)


def check_delayed(running: Service, golden: Golden, delay: float, max_tokens: int) -> None:
    first, second = (Delay(worker, delay) for worker in running.workers)
    with loaded(running, max_tokens=max_tokens) as load, first, second:
        load.wait_for_more(PATIENCE)
        begin = len(load.streams)
        load.wait_for_more(PATIENCE)
        slow = [stream for stream in load.streams[begin:] if stream.status]
    check(load.streams, golden, max_tokens=max_tokens)
    assert running.server.num_losses() == 0
    assert running.server.num_ready() == 2
    step = NUM_LAYERS * 2 * delay
    seconds = [(stream.ended - stream.started) / max_tokens for stream in slow]
    print(f"a token took {min(seconds):.3f} to {max(seconds):.3f} s, round trips alone {step:.3f} s")
    assert step <= min(seconds)
    # A request waits for the step that runs, and two parts of a step may take turns.
    assert max(seconds) <= 2.5 * step


def test_b6_a_narrow_link_holds_back_and_fills_no_memory(golden: Golden, log: Path) -> None:
    with service(log) as running:
        first, second = (Bandwidth(worker, 10_000_000) for worker in running.workers)
        with loaded(running) as load:
            before = resident_bytes(running.server.engine_pid())
            with first, second:
                load.wait_for_more(PATIENCE)
                load.wait_for_more(PATIENCE)
        check(load.streams, golden)
        assert running.server.num_losses() == 0
        assert resident_bytes(running.server.engine_pid()) - before < 64 << 20


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS"))


def test_b7_a_flapping_link_storms_nobody(golden: Golden, log: Path) -> None:
    """One second there, one second away, for half a minute."""
    with service(log) as running:
        with loaded(running) as load:
            fault = partition(running.workers[0])
            for _ in range(15):
                hold(fault, 1.0)
                time.sleep(1.0)
            running.wait_all_ready(PATIENCE)
            load.wait_for_more()
        check(load.streams, golden)
        # At most once for each time that it was away, with the two parts of a step that were under way; never
        # where its replica answered each time before a deadline was over. `hold` sees to it that it was away.
        assert running.server.num_losses() <= 2 * 15
        assert added_gap(load) <= CALL_TIMEOUT + 0.5


def kill_a_worker(running: Service) -> tuple[int, int]:
    """Its rank and pid. Where calls fail by chance, workers are given up without it, perhaps all at this
    moment: then it is one that comes back."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for rank, pid in running.server.workers().items():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return rank, pid
        time.sleep(0.02)
    raise TimeoutError("no worker has a process")


@pytest.mark.parametrize(("transport", "before", "after"), [("stream", 10, 10), ("ray", 1, 1)])
def test_b8_some_of_rays_calls_fail(
    golden: Golden, log: Path, transport: str, before: int, after: int
) -> None:
    """So many in a hundred before they are sent, and after they were answered: made again, they come twice.

    Over streams they are those that find and describe workers, as when one comes back; else all.
    """
    chances = {"req_failure_prob": before, "resp_failure_prob": after, "in_flight_failure_prob": 0}
    chaos = {"CoreWorkerService.grpc_client.PushTask": {"num_failures": -1, **chances}}
    env = {"RAY_testing_rpc_failure": json.dumps(chaos)}
    with service(log, f"--transport={transport}", env=env) as running:
        with loaded(running) as load:
            rank, pid = kill_a_worker(running)
            load.wait_for_more(PATIENCE)
            failed = "the worker that was killed is not back"
            wait_until(lambda: running.server.workers().get(rank, pid) != pid, PATIENCE, failed)
            load.wait_for_more(PATIENCE)
        check(load.streams, golden)
        assert running.server.num_losses() > 0
        assert "RpcFailureManager" in running.server.log, "Ray was told to fail"


@pytest.mark.parametrize("on_loss", ["auto", "wait"])
def test_b9_a_coordinator_without_any_worker_goes_on_or_waits(
    golden: Golden, log: Path, on_loss: str
) -> None:
    """It loads all experts itself; or, told to wait for its workers, goes on when they are back."""
    with service(log, f"--on-expert-loss={on_loss}") as running:
        with loaded(running) as load:
            hold(partition(running.ray.head, *running.workers), 5.0)
            running.wait_all_ready(PATIENCE)
            load.wait_for_more()
        check(load.streams, golden, allowed=(OK,) if on_loss == "auto" else (OK, UNAVAILABLE))
        assert running.server.process.poll() is None
        assert running.server.num_losses() >= 2
        if on_loss == "auto":
            assert added_gap(load) <= CALL_TIMEOUT + 2.0
        else:
            assert longest_gap(load) >= 4.0, "nobody was served meanwhile"
            assert longest_gap(load) < WAIT_TIMEOUT


def test_a13_a_killed_raylet_costs_no_more_than_a_killed_worker(golden: Golden, log: Path) -> None:
    with service(log) as running:
        with loaded(running) as load:
            host = running.workers[0]
            running.ray.kill_raylet(host)
            running.wait_rejoined(host)
            running.wait_all_ready(PATIENCE)
            load.wait_for_more()
        check(load.streams, golden)
        assert longest_gap(load) <= 1.5
