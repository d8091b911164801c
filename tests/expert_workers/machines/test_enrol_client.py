"""A joiner trusts the head that its token names, and no other."""

import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from expert_workers.machines import reach
from expert_workers.machines.certificates import fingerprint, new_key, request_for
from expert_workers.machines.cluster_folder import CA, CERT, KEY, ClusterFolder
from expert_workers.machines.enrol_client import EnrolClient
from expert_workers.machines.enrol_messages import ReachRequest
from expert_workers.machines.enrol_service import Secrets
from expert_workers.machines.identity import head_secrets
from expert_workers.machines.join_token import JoinToken
from expert_workers.machines.ports import NodePorts, PortRange
from moe_model.errors import ClusterError, HaltedError
from moe_model.halt import Halt
from tests.coordinator.api.certificates import DAY, Authority, write_private
from tests.expert_workers.machines.made import HOST, a_request, enrolling, serving


def test_another_ca_is_refused_before_the_secret_is_said(tmp_path: Path) -> None:
    with enrolling(tmp_path / "head") as head:
        client = head.client(replace(head.token, ca="ab" * 32))
        with pytest.raises(ClusterError, match="another CA than the join token names"):
            client.trust()


def test_a_ca_beside_the_right_one_is_refused(tmp_path: Path) -> None:
    """The right one is anyone's to ask for, and a certificate of the other one would be trusted as well."""
    with enrolling(tmp_path / "head") as head:
        token, ca = head.token, head.folder.read(CA)
    secrets = head_secrets(ClusterFolder.create(tmp_path / "false"), HOST, None)
    both = replace(secrets, ca=ca + secrets.ca)
    with serving(ClusterFolder(tmp_path / "false"), both) as false, pytest.raises(ClusterError) as refused:
        false.client(token).trust()
    refused.match("another CA than the join token names")


def test_what_is_not_hashed_is_not_kept(tmp_path: Path) -> None:
    with enrolling(tmp_path / "head") as head:
        token, ca = head.token, head.folder.read(CA)
        with serving(head.folder, Secrets(b"more\n" + ca + b"more\n", None, token.secret, "x")) as wordy:
            assert wordy.client(token).trust()[0] == ca


def test_a_wrong_secret_is_refused(tmp_path: Path) -> None:
    with enrolling(tmp_path / "head") as head:
        client = head.client(replace(head.token, secret="ab" * 32))
        client.trust()
        with pytest.raises(ClusterError, match="refuses: the join token is not this cluster's"):
            client.enrol(a_request())


def test_a_joiner_cannot_stand_in_for_the_head(tmp_path: Path) -> None:
    """It has a certificate of the same CA, for its address."""
    folder = ClusterFolder.create(tmp_path / "head")
    secrets = head_secrets(folder, HOST, None)
    assert secrets.authority is not None
    with enrolling(tmp_path / "head") as head:
        token = head.token
    key = new_key()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_private(theirs / "node.key", key)
    write_private(theirs / "node.pem", secrets.authority.sign(request_for(key), HOST))
    write_private(theirs / "ca.pem", secrets.ca)
    with enrolling(tmp_path / "false", certificates=theirs) as head:
        client = head.client(token)
        client.trust()
        with pytest.raises(ClusterError, match="is for another name or address"):
            client.enrol(a_request())


@pytest.mark.parametrize(
    ("begins", "ends", "why"), [(-DAY, -DAY / 2, "has expired"), (DAY / 2, DAY, "is not valid yet")]
)
def test_a_certificate_of_another_time(tmp_path: Path, begins: timedelta, ends: timedelta, why: str) -> None:
    authority, folder = Authority(), ClusterFolder.create(tmp_path / "head")
    certificate, key = authority.sign(begins=begins, ends=ends)
    folder.write(CERT, certificate)
    folder.write(KEY, key)
    token = JoinToken("ab" * 32, fingerprint(authority.pem), brings=True)
    with serving(folder, Secrets(authority.pem, None, token.secret, "x")) as head:
        client = head.client(token)
        client.trust()
        with pytest.raises(ClusterError, match=f"{why}.*clock is wrong"):
            client.enrol(a_request())


def test_a_clock_that_is_off_is_the_head_s_to_say(tmp_path: Path) -> None:
    with enrolling(tmp_path / "head", clock=lambda: time.time() + 100) as head:
        client = head.client()
        client.trust()
        with pytest.raises(ClusterError, match=r"refuses: the clock of 127\.0\.0\.1 is 100 s behind that of"):
            client.enrol(a_request())


def test_what_is_no_head_is_named() -> None:
    with socket.create_server((HOST, 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ClusterError, match="something else listens there"):
            EnrolClient(HOST, other.getsockname()[1], JoinToken.new("ab" * 32), None, Halt()).trust()
        thread.join()


def test_a_head_that_is_not_there_is_named() -> None:
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ClusterError, match="cannot be reached: Connection refused; start `expertmesh head`"):
        EnrolClient(HOST, port, JoinToken.new("ab" * 32), None, Halt()).trust()
    with pytest.raises(ClusterError, match="cannot be reached"):
        EnrolClient("none.invalid", port, JoinToken.new("ab" * 32), None, Halt()).trust()


def test_a_head_that_hangs_is_named_in_time_and_a_signal_is_heard() -> None:
    with socket.create_server((HOST, 0)) as silent:
        port, token = silent.getsockname()[1], JoinToken.new("ab" * 32)
        started = time.monotonic()
        with pytest.raises(ClusterError, match="timed out; it hangs, or a firewall is between"):
            EnrolClient(HOST, port, token, None, Halt(), patience=0.3).trust()
        halt = Halt()
        timer = threading.Timer(0.2, halt.set)
        timer.start()
        with pytest.raises(HaltedError):
            EnrolClient(HOST, port, token, None, halt, patience=60).trust()
        timer.join()
        assert time.monotonic() - started < 10


def test_the_head_says_which_ports_it_cannot_reach(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        first = taken.getsockname()[1]
    ports = NodePorts(first, PortRange(first, first), PortRange(first, first))
    with enrolling(tmp_path / "head") as head:
        client = head.client()
        client.trust()
        sample = set(ports.sample())
        assert set(client.unreachable(ReachRequest(ports))) == sample
        with reach.answering({first}):
            assert set(client.unreachable(ReachRequest(ports))) == sample - {first}
