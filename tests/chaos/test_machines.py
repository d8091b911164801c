"""A cluster by the commands of deploy/machines, over hosts with a network between them."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_workers.machines.cluster_folder import CA, CERT, KEY
from expertmesh import Client, ControlClient
from expertmesh.v1 import control_pb2 as pb
from scaling.hosts.links import Filter, partition
from scaling.hosts.namespaces import Host, Network
from scaling.hosts.ray_hosts import wait_until
from tests.integration.machines import Machine
from tests.integration.processes import COMMAND, DEMO_CHECKPOINT, Server

READY = pb.ExpertWorker.STATE_READY
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280), pytest.mark.usefixtures("capable")]


class Machines:
    """Hosts of a network, the first of which is a head."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.folder = folder
        self.hosts = {name: network.host(name) for name in ("head", "one", "two")}

    def head(self) -> Machine:
        return Machine("head", self.folder, "head", prefix=self.hosts["head"].command())

    def join(self, name: str, head: Machine, *arguments: str) -> Machine:
        where = [head.value("enrol"), f"--token-file={head.value('token')}"]
        return Machine(name, self.folder, "join", *where, *arguments, prefix=self.hosts[name].command())


@pytest.fixture
def machines(tmp_path: Path, capable: None) -> Iterator[Machines]:
    with Network() as network:
        yield Machines(network, tmp_path)


def error_of(machine: Machine) -> str:
    assert machine.process.wait(60) == 1, machine.log
    return machine.log.strip().splitlines()[-1]


def test_a_cluster_with_default_ports_serves_over_tls_and_heals(machines: Machines) -> None:
    head_address = machines.hosts["head"].address
    with machines.head() as head, machines.join("one", head.wait_ready()) as one:
        assert head.value("head") == f"{head_address}:6379", "no default route leads anywhere from here"
        with machines.join("two", head) as two:
            one.wait_ready()
            two.wait_ready()
            addresses = [f"--{name}-address={head_address}:0" for name in ("grpc", "http", "control")]
            with Server(
                *(str(DEMO_CHECKPOINT), f"--cluster={head.folder}", "--workers-per-node=1", "--insecure"),
                *("--replicas=2", *addresses),
                log=machines.folder / "serve",
                prefix=machines.hosts["head"].command(),
            ) as server:
                server.wait_ready()
                expected = generate(server)
                for name in ("one", "two"):
                    check_rows_are_encrypted(machines.hosts[name], head)
                with partition(machines.hosts["two"]):
                    assert generate(server) == expected
                    wait_until(lambda: num_ready(server) == 1, 60, "the machine is not missed")
                    wait_until(lambda: "is started again" in two.log, 60, f"it goes on as before:\n{two.log}")
                healed = time.monotonic()
                wait_until(
                    lambda: "in the cluster again" in two.log, 60, f"it does not come back:\n{two.log}"
                )
                seconds = time.monotonic() - healed
                assert seconds < 15, f"came back after {seconds:.1f} s"
                wait_until(lambda: num_ready(server) == 2, 60, server.log)
                assert generate(server) == expected
                assert server.stop() == 0
            assert two.stop() == 0
        assert one.stop() == 0
        assert head.stop() == 0
    for host in machines.hosts.values():
        wait_until(lambda host=host: not host.pids(), 20, f"still running in {host.name}")  # type: ignore[misc]


def generate(server: Server) -> tuple[int, ...]:
    with Client(server.address) as client:
        return client.generate("def f(", max_tokens=16, temperature=0, return_token_ids=True).token_ids


def num_ready(server: Server) -> int:
    with ControlClient(server.address_of("control")) as control:
        return sum(worker.state == READY for worker in control.topology())


def check_rows_are_encrypted(host: Host, head: Machine) -> None:
    """A worker listens in the range that is said, and speaks TLS only to what has a certificate of the CA."""
    listening = host.run("ss", "-Hltn").split()
    ports = {int(word.rpartition(":")[2]) for word in listening if word.rpartition(":")[2].isdecimal()}
    (port,) = {port for port in ports if 20100 <= port <= 20199}
    trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusted.check_hostname = False
    trusted.load_verify_locations(head.folder / CA)
    with pytest.raises(ssl.SSLError), shaken(host, port, trusted) as connection:
        # A peer that refuses our certificate says so after the handshake.
        connection.recv(1)
    trusted.load_cert_chain(head.folder / CERT, head.folder / KEY)
    with shaken(host, port, trusted) as connection:
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


def shaken(host: Host, port: int, trusted: ssl.SSLContext) -> ssl.SSLSocket:
    return trusted.wrap_socket(socket.create_connection((host.address, port), 10))


def test_a_firewall_is_named_in_each_direction(machines: Machines) -> None:
    one, network = machines.hosts["one"], machines.hosts["one"].network
    with machines.head() as head:
        head.wait_ready()
        to_one = Filter("firewall", network, [f"-o {one.port} -p tcp --dport 6381"])
        with to_one, machines.join("one", head) as joiner:
            line = error_of(joiner)
            assert (
                f"ports from the head: cannot reach {one.address}:6381 (Ray's node manager): timed out"
                in line
            )
            assert "a firewall is between: open 6381-6386, 20000-20099, 20100-20199" in line
        to_head = Filter("firewall", network, [f"-i {one.port} -p tcp --dport 6379"])
        with to_head, machines.join("one", head) as joiner:
            line = error_of(joiner)
            address = machines.hosts["head"].address
            assert f"ports of the head: cannot reach {address}:6379" in line
        enrolment = Filter("firewall", network, [f"-i {one.port} -p tcp --dport 6380"])
        with enrolment, machines.join("one", head) as joiner:
            assert "cannot be reached: timed out; it hangs, or a firewall is between" in error_of(joiner)
        with to_one:
            command = ["doctor", head.value("enrol"), f"--token-file={head.value('token')}"]
            said = doctor(one, *command, f"--folder={machines.folder / 'none'}")
            assert f"error   ports from the head: cannot reach {one.address}:6381" in said


def doctor(host: Host, *arguments: str) -> str:
    process = host.popen(*COMMAND, *arguments, stdout=-1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    return str(said.decode())
