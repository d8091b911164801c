"""Four uneven hosts on real cables, brought up by the documented commands alone, under load from then on.

A head and three joiners with empty disks, TLS, an API key. One host is cut off, one leaves, one joins: no
request is lost and no token changes. The figures are printed: run it with -s.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from expertmesh import ControlClient
from expertmesh.v1 import control_pb2
from scaling.hosts.links import Bandwidth, Delay, partition
from scaling.hosts.namespaces import Network
from scaling.hosts.ray_hosts import wait_until
from tests.chaos.commanded_hosts import (
    CommandedHost,
    Secrets,
    has_memory_groups,
    make_secrets,
    write_figures,
)
from tests.chaos.load import Asked, Load, Stream, check, gaps, golden_of
from tests.integration.processes import Server, run_command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900), pytest.mark.usefixtures("capable")]

GIGABIT, ONE_WAY, SHARE = 1_000_000_000, 0.001, 3 << 29
MEMORY = {"w1": 1, "w2": 2, "w3": 4}
# 32 experts of 8.4 MB: enough for a machine to fetch for some seconds.
SIZES = {"n_layers": 4, "n_experts": 8, "d_model": 512, "d_ff": 2048, "n_heads": 8, "top_k": 2}
SECONDS = 120.0
PROMPTS: tuple[Asked, ...] = tuple(tuple(range(3 + n, 400, 17 + n)) for n in range(8))


@pytest.fixture(scope="module")
def model(capable: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    (folder / "sizes.yaml").write_text(yaml.safe_dump(SIZES))
    made = run_command("init", str(folder / "model"), f"--config={folder / 'sizes.yaml'}")
    assert made.returncode == 0, made.stderr
    return folder / "model"


def longest_gap(streams: Sequence[Stream], begin: float, end: float) -> float:
    """Between two messages of a stream, both within these moments."""
    times = [[t for t in stream.times if begin <= t <= end] for stream in streams]
    return max(later - earlier for each in times for earlier, later in pairwise(each))


class Cluster:
    """The four hosts."""

    def __init__(self, stack: ExitStack, model: Path, folder: Path) -> None:
        network = stack.enter_context(Network())
        head = network.host("head")
        self.model, self.head = model, CommandedHost(head, folder)
        self.joiners: dict[str, CommandedHost] = {}
        for name, share in MEMORY.items():
            host = network.host(name, is_relayed=True)
            joiner = CommandedHost(host, folder, hidden=model, memory_bytes=share * SHARE)
            stack.callback(joiner.close)
            # The cables are what they are to the end: they need not have acted at a given moment.
            for fault in (Bandwidth(host, GIGABIT, 0.05), Delay(host, ONE_WAY)):
                fault.start()
                stack.callback(fault.heal, must_have_acted=False)
            self.joiners[name] = joiner
        self.server = CommandedHost(head, folder / "serve")
        (folder / "serve").mkdir()
        self.secrets: Secrets = make_secrets(folder / "secrets", head.address)

    def start(self) -> None:
        address = self.head.host.address
        ready = self.head.begin("head", f"--address={address}").ready()
        self.enrol, self.token = ready["enrol"], ready["token"]
        for joiner in self.joiners.values():
            self.join(joiner)
        for joiner in self.joiners.values():
            joiner.ready()
        ports = {"grpc": 50051, "http": 8000, "control": 50052}
        listening = [f"--{name}-address={address}:{port}" for name, port in ports.items()]
        cluster = f"--cluster={self.head.home / '.expertmesh' / 'cluster'}"
        options = ["--workers-per-node=1", "--min-machines=3", "--replicas=2", "--call-timeout=2"]
        # What is fetched is what the last placement says, and not what loads have said meanwhile.
        options.append("--rebalance-interval=0")
        self.server.begin("serve", str(self.model), cluster, *options, *listening, *self.secrets.options)
        self.server.ready(200.0)

    def join(self, joiner: CommandedHost) -> None:
        joiner.begin("join", self.enrol, f"--token-file={self.token}", f"--address={joiner.host.address}")

    def control(self) -> ControlClient:
        address = f"{self.head.host.address}:50052"
        return ControlClient(address, connection=self.secrets.connection)


def whole(control: ControlClient) -> dict[str, int]:
    """By the address of its host, the rows of each worker that has all that it should have."""
    workers = control.topology()
    return {w.host: w.routed_tokens for w in workers if w.state == control_pb2.ExpertWorker.STATE_READY}


def num_rows(control: ControlClient, host: str) -> int:
    """Of the workers there, whether they have all of their experts or not."""
    return sum(worker.routed_tokens for worker in control.topology() if worker.host == host)


@pytest.fixture
def cluster(model: Path, tmp_path: Path) -> Iterator[Cluster]:
    if not has_memory_groups():
        pytest.skip("no control groups of memory, version 1")
    with ExitStack() as stack:
        yield Cluster(stack, model, tmp_path)


def test_one_is_cut_off_one_leaves_and_one_joins(cluster: Cluster, tmp_path: Path) -> None:
    with Server(str(cluster.model), "--workers=0", log=tmp_path / "golden") as alone:
        alone.wait_ready()
        golden = golden_of(alone.address, PROMPTS)
    cluster.start()
    address, figures = f"{cluster.head.host.address}:50051", dict[str, object]()
    w1, w2, _ = cluster.joiners.values()
    experts = sum(path.stat().st_size for path in cluster.model.glob("experts/*/*"))
    with (
        cluster.control() as control,
        Load(address, PROMPTS, connection=cluster.secrets.connection) as load,
    ):
        load.wait_for_more(SECONDS)
        with partition(w1.host):
            wait_until(lambda: w1.host.address not in whole(control), SECONDS, "it is not missed")
            load.wait_for_more(SECONDS)
        wait_until(lambda: len(whole(control)) == 3, SECONDS, "it is not back")
        load.wait_for_more(SECONDS)

        started = time.monotonic()
        assert w2.stop(signal.SIGINT) == 0, w2.log[-2000:]
        figures["seconds to leave"] = round(time.monotonic() - started, 2)
        assert w2.host.pids() == w2.others, "something of it is left"
        load.wait_for_more(SECONDS)
        wait_until(lambda: len(whole(control)) == 2, SECONDS, "not two workers")
        quiet_from = time.monotonic()
        load.wait_for_more(SECONDS)
        quiet_until = time.monotonic()

        w2.forget()
        cluster.join(w2)
        here = w2.host.address
        wait_until(lambda: num_rows(control, here) > 0, SECONDS, "no row")
        first_row = time.monotonic()
        wait_until(lambda: here in whole(control), SECONDS, "it does not hold its part")
        loaded = time.monotonic()
        load.wait_for_more(SECONDS)
        held = {w.host: w.weight_bytes for w in control.topology()}
    check(load.streams, golden)
    assert len({stream.prompt for stream in load.streams}) == len(PROMPTS)
    quiet, fetching = (
        longest_gap(load.streams, *times) for times in ((quiet_from, quiet_until), (first_row, loaded))
    )
    figures |= {
        "requests": len(load.streams),
        "seconds from join to its first row": round(first_row - w2.started, 2),
        "seconds from join to all": round(loaded - w2.started, 2),
        "MB of all experts": round(experts / 1e6, 1),
        "MB held by each": {name: round(num / 1e6, 1) for name, num in held.items()},
        "MB fetched by each": [round(j.num_cached() / 1e6, 1) for j in cluster.joiners.values()],
        "longest gap, quiet and fetching": (round(quiet, 3), round(fetching, 3)),
        "gaps": gaps(load.streams),
    }
    write_figures("four hosts", figures)
    assert w2.num_cached() <= 1.1 * held[here]
    assert cluster.server.stop(signal.SIGTERM) == 0
    for joiner in cluster.joiners.values():
        assert joiner.stop(signal.SIGINT) == 0
    assert cluster.head.stop(signal.SIGINT) == 0
