"""deploy/slurm/expertmesh.sbatch by a real Slurm: it starts, answers, drains, and leaves nothing behind."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from scaling.hosts.ray_hosts import wait_until
from tests.deploy.slurm_cluster import ROOT, SlurmCluster, missing
from tests.deploy.tools import DEPLOY

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

SBATCH, CHECKPOINT = DEPLOY / "slurm" / "expertmesh.sbatch", ROOT / "demo" / "checkpoint"
START_TIMEOUT = 150.0
# Of an experiment of one quick cell and two rounds.
SWEEP_TIMEOUT = 300.0
MODEL = (str(SBATCH), str(CHECKPOINT), "--worker-threads=1")
# In the prompt's model: some seconds of tokens.
REFUSED = re.compile(rb"^expertmesh client: error: UNAVAILABLE")
LONG = ("--prompt", "def main():", "--ignore-eos", "--max-tokens", "480", "--context-overflow", "stop")


@pytest.fixture
def start() -> Iterator[Callable[..., SlurmCluster]]:
    """Starts a cluster with these nodes, which ends with the test."""
    if lacking := missing():
        pytest.fail(f"{lacking}: apt-get install slurm-wlm munge iproute2 iptables, and run as root")
    clusters: list[SlurmCluster] = []

    def started(*nodes: str) -> SlurmCluster:
        clusters.append(SlurmCluster(*nodes))
        return clusters[-1].__enter__()

    yield started
    for cluster in clusters:
        cluster.close()


class Job:
    """One that serves: submitted, and waited for."""

    def __init__(self, cluster: SlurmCluster, *options: str) -> None:
        self.cluster = cluster
        self.number = cluster.submit(*options, *MODEL)
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        wait_until(
            lambda: "To end it" in self.output or cluster.job(self.number)["JobState"] in ended,
            START_TIMEOUT,
            "no READY",
        )
        assert "To end it" in self.output, self.output + cluster.logs()
        self.key_file = Path(self._said(r"The key is in (\S+),"))
        self.grpc = "127.0.0.1:" + self._said(r"-L 50051:127\.0\.0\.1:(\d+)")
        self.first_port = 10_000 + self.number % 90 * 250
        # As its own page says it.
        self.head = self._said(r"Serving on (\S+) for")

    @property
    def output(self) -> str:
        return self.cluster.output(self.number)

    def request(self, *arguments: str) -> subprocess.Popen[bytes]:
        client = (sys.executable, "-m", "expertmesh.cli", "client", self.grpc)
        return self.cluster.on_node(self.head, *client, "--api-key-file", str(self.key_file), *arguments)

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found, self.output
        return found[1]


def assert_nodes_are_empty(cluster: SlurmCluster) -> None:
    for node in cluster.nodes:
        wait_until(lambda node=node: not cluster.processes(node), 60, "processes stay")  # type: ignore[misc]
        assert cluster.temporary(node) == []


def assert_nothing_stays(cluster: SlurmCluster) -> None:
    assert_nodes_are_empty(cluster)
    assert [path.suffix for path in cluster.home.iterdir()] == [".log"]


def answer(request: subprocess.Popen[bytes]) -> str:
    output, _ = request.communicate(timeout=120)
    assert request.returncode == 0, output
    return output.decode()


def wait_for_output(request: subprocess.Popen[bytes]) -> bytes:
    """Until a stream has begun; its first bytes."""
    assert request.stdout is not None
    return request.stdout.read(1)


def secrets_of(cluster: SlurmCluster, job: Job) -> list[str]:
    """The API key, and Ray's token as the processes on the head find it."""
    (folder,) = cluster.temporary(job.head)
    pids = cluster.nodes[job.head].pids()
    paths = (cluster.root_of(pid) / "tmp" / folder / "ray.token" for pid in pids)
    token = next(path.read_text() for path in paths if path.exists())
    assert token.strip()
    return [token.strip(), job.key_file.read_text().strip()]


def assert_told_to_no_process(cluster: SlurmCluster, secrets: list[str]) -> None:
    for host in cluster.nodes.values():
        for pid in host.pids():
            for name in ("cmdline", "environ"):
                # It may have ended meanwhile.
                with suppress(OSError):
                    told = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
                    assert not any(secret in told for secret in secrets), (name, told[:200])


def test_one_node_serves_until_its_time_is_up(start: Callable[..., SlurmCluster]) -> None:
    cluster = start("n1")
    job = Job(cluster, "--time=60")
    assert job.head == "n1"
    assert answer(job.request("--prompt", "def main():", "--max-tokens", "8"))
    assert job.key_file.stat().st_mode & 0o777 == 0o600
    assert_told_to_no_process(cluster, secrets_of(cluster, job))
    # No new job comes to a node that is being emptied, and what serves there goes on.
    cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    other = cluster.submit(*MODEL)
    assert answer(job.request("--prompt", "def main():", "--max-tokens", "8"))
    assert cluster.job(other)["JobState"] == "PENDING"
    cluster.run("scancel", str(other))
    # The end is one to two minutes away. Slurm looks at the time every 30 s, and signals a minute before.
    hours, minutes, _ = map(int, cluster.job(job.number)["RunTime"].split(":"))
    cluster.run("scontrol", "update", f"jobid={job.number}", f"timelimit={hours * 60 + minutes + 2}")
    told = []
    while "not ready: draining" not in job.output:
        running = job.request(*LONG)
        output, _ = running.communicate(timeout=120)
        told.append((running.returncode, output))
    # One that runs is finished, and one that comes later is refused; none is broken off.
    assert told[0][0] == 0
    assert [output for code, output in told if code and not REFUSED.search(output)] == []
    ended = cluster.wait_state(job.number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), job.output
    assert_nothing_stays(cluster)


def test_two_nodes_are_one_cluster_and_end_together(start: Callable[..., SlurmCluster]) -> None:
    cluster = start("n1", "n2")
    job = Job(cluster, "--nodes=2")
    assert " workers=2 " in job.output
    for node in cluster.nodes:
        assert [line for line in cluster.processes(node) if line.startswith("ray::ExpertActor")]
        assert cluster.open_ports(node)
        assert {port for port in cluster.open_ports(node) if port // 250 != job.first_port // 250} == set()
    assert_told_to_no_process(cluster, secrets_of(cluster, job))
    running = job.request(*LONG)
    wait_for_output(running)
    cluster.run("scancel", "--batch", "--signal=TERM", str(job.number), is_user=True)
    answer(running)
    ended = cluster.wait_state(job.number, "COMPLETED", "FAILED", "CANCELLED")
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), job.output
    assert_nothing_stays(cluster)


def test_a_job_that_is_cancelled_leaves_nothing(start: Callable[..., SlurmCluster]) -> None:
    cluster = start("n1", "n2")
    job = Job(cluster, "--nodes=2")
    running = job.request(*LONG)
    wait_for_output(running)
    cluster.run("scancel", str(job.number), is_user=True)
    output, _ = running.communicate(timeout=60)
    assert running.returncode != 0
    assert b"UNAVAILABLE" in output
    cluster.wait_state(job.number, "CANCELLED")
    assert_nothing_stays(cluster)


@pytest.mark.parametrize("mistake", [(str(SBATCH), "no/such/model"), (str(SBATCH),)], ids=["model", "none"])
def test_a_start_that_fails_is_a_job_that_fails(
    start: Callable[..., SlurmCluster], mistake: tuple[str, ...]
) -> None:
    cluster = start("n1")
    number = cluster.submit(*mistake)
    ended = cluster.wait_state(number, "COMPLETED", "FAILED", "CANCELLED")
    assert ended["JobState"] == "FAILED", cluster.output(number)
    assert "error: " in cluster.output(number) or "usage: " in cluster.output(number)
    assert_nothing_stays(cluster)


def experiment(cluster: SlurmCluster, rounds: int) -> tuple[str, ...]:
    """What is behind `sbatch` for one quick cell on both nodes; its results go to a folder of the user's."""
    file = cluster.home / "experiment.yaml"
    file.write_text(
        f"""\
name: job
rounds: {rounds}
warmup: 1
cells:
  - model: {CHECKPOINT}
    dtype: float32
    where: cluster
    workers: 2
    serve: {{worker-threads: 1}}
    load: {{concurrency: 2, num_requests: 4, prompt_tokens: 8, output_tokens: 8}}
"""
    )
    file.chmod(0o644)
    return (str(SBATCH), "sweep", file.name, "--out", "results")


def measured(cluster: SlurmCluster) -> list[dict[str, object]]:
    """The runs that a sweep has written so far."""
    path = cluster.home / "results" / "observations.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def has_ended(cluster: SlurmCluster, number: int) -> bool:
    return cluster.job(number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def have_workers(cluster: SlurmCluster) -> bool:
    """Whether each node has a worker of experts."""
    return all(
        any(line.startswith("ray::ExpertActor") for line in cluster.processes(node)) for node in cluster.nodes
    )


def assert_measured(cluster: SlurmCluster, number: int, rounds: int) -> None:
    ended = cluster.wait_state(number, "COMPLETED", "FAILED", "CANCELLED", timeout=SWEEP_TIMEOUT)
    said = cluster.output(number)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), said + repr(measured(cluster))
    assert [(run["round"], run.get("failed")) for run in measured(cluster)] == [
        (n, None) for n in range(rounds)
    ]
    assert (cluster.home / "results" / "report.html").exists()
    assert_nodes_are_empty(cluster)
    assert not list(cluster.home.glob("*.key"))


def test_a_sweep_measures_on_the_nodes_of_a_job(start: Callable[..., SlurmCluster]) -> None:
    cluster = start("n1", "n2")
    number = cluster.submit("--nodes=2", *experiment(cluster, rounds=1))
    wait_until(lambda: has_ended(cluster, number) or have_workers(cluster), SWEEP_TIMEOUT, "no workers")
    assert have_workers(cluster), cluster.output(number)
    assert_measured(cluster, number, rounds=1)


@pytest.mark.parametrize(
    ("how", "state"), [(("--batch", "--signal=TERM"), "FAILED"), ((), "CANCELLED")], ids=["script", "all"]
)
def test_a_sweep_that_is_cancelled_goes_on_in_another_job(
    start: Callable[..., SlurmCluster], how: tuple[str, ...], state: str
) -> None:
    cluster = start("n1", "n2")
    command = experiment(cluster, rounds=2)
    number = cluster.submit("--nodes=2", *command)
    wait_until(lambda: has_ended(cluster, number) or bool(measured(cluster)), SWEEP_TIMEOUT, "no first run")
    assert len(measured(cluster)) == 1, cluster.output(number)
    cluster.run("scancel", *how, str(number), is_user=True)
    # Slurm gives them 60 s from the signal to the time limit.
    cluster.wait_state(number, state, timeout=60)
    assert_nodes_are_empty(cluster)
    assert len(measured(cluster)) == 1
    assert_measured(cluster, cluster.submit("--nodes=2", *command, "--resume"), rounds=2)
