"""What a head answers: to whom, and why not."""

import json
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.security.backoff import Backoff
from expert_workers.machines.certificates import is_for, new_key, request_for
from expert_workers.machines.cluster_folder import ClusterFolder, Membership
from expert_workers.machines.enrol_messages import (
    Enrolled,
    EnrolRequest,
    MessageError,
    ReachReply,
    ReachRequest,
    encode,
)
from expert_workers.machines.enrol_service import Answer, Asked, EnrolService
from expert_workers.machines.identity import head_secrets
from expert_workers.machines.ports import NodePorts, PortRange
from expert_workers.machines.versions import Versions
from tests.expert_workers.machines.made import HEAD, HOST, a_request

JOINER = "10.0.0.3"


class Made:
    """A service, and the secret that it wants."""

    def __init__(self, folder: Path) -> None:
        self.secrets = head_secrets(ClusterFolder.create(folder), HOST, None)
        self.now = 0.0
        self.backoff = Backoff(clock=lambda: self.now)
        membership = Membership(HEAD, HOST, is_head=True, has_tls=True, ports=NodePorts())
        self.service = EnrolService(self.secrets, membership, self.backoff)

    def ask(self, path: str, body: bytes, secret: str | None = None, peer: str = JOINER) -> Answer:
        bearer = self.secrets.join_secret if secret is None else secret
        return self.service.answer(Asked("POST", path, bearer, body, peer))

    def refusal(self, request: EnrolRequest, peer: str = JOINER) -> str:
        answer = self.ask("/v1/enrol", encode(request), peer=peer)
        assert answer.status == HTTPStatus.CONFLICT
        return str(json.loads(answer.body)["error"])


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "head")


def test_a_joiner_gets_all_that_it_needs(made: Made) -> None:
    key = new_key()
    answer = made.ask("/v1/enrol", encode(a_request(request_for(key), address=JOINER)))
    assert answer.status == HTTPStatus.OK
    enrolled = Enrolled.parse(answer.body)
    assert enrolled.head == HEAD
    assert enrolled.ray_token == made.secrets.ray_token
    assert is_for(enrolled.certificate.encode(), JOINER, key)
    assert made.secrets.ray_token not in repr(enrolled)


def test_without_the_secret_only_the_ca_is_told(made: Made) -> None:
    assert made.service.answer(Asked("GET", "/v1/ca", "", b"", JOINER)).body == made.secrets.ca
    bodies = {
        made.ask(path, b"{}", secret=secret, peer=f"10.0.{number}.{len(secret)}").body
        for number, path in enumerate(("/v1/enrol", "/v1/check", "/v1/reach", "/v1/bytes", "/nothing"))
        for secret in ("", "x", made.secrets.join_secret[:-1])
    }
    assert bodies == {b'{"error": "the join token is not this cluster\'s"}'}


def test_wrong_secrets_slow_a_peer_down_and_no_other(made: Made) -> None:
    answers = [made.ask("/v1/enrol", b"{}", secret="x").status for _ in range(1000)]
    assert answers[:10] == [HTTPStatus.UNAUTHORIZED] * 10
    assert set(answers[10:]) == {HTTPStatus.TOO_MANY_REQUESTS}
    waits = made.ask("/v1/enrol", b"{}", secret="x")
    assert waits.retry_after > 0
    good = encode(a_request(request_for(new_key()), address="10.0.0.4"))
    assert made.ask("/v1/enrol", good, peer="10.0.0.4").status == HTTPStatus.OK
    made.now += 61
    good = encode(a_request(request_for(new_key()), address=JOINER))
    assert made.ask("/v1/enrol", good).status == HTTPStatus.OK


@pytest.mark.parametrize("what", ["expertmesh", "ray", "python", "protocol"])
def test_another_version_is_refused_naming_both(made: Made, what: str) -> None:
    here = Versions.here()
    values = {name: getattr(here, name) for name in Versions.__slots__}
    line = made.refusal(a_request(versions=Versions(**{**values, what: "0.0.1"}), address=JOINER))
    assert f"{JOINER} has {what} 0.0.1" in line
    assert f"the head {HOST} has {values[what]}" in line
    assert "install the same" in line


@pytest.mark.parametrize(("seconds", "how"), [(95.0, "ahead of"), (-3600.0, "behind")])
def test_a_clock_that_is_off_is_refused(made: Made, seconds: float, how: str) -> None:
    request = EnrolRequest(Versions.here(), time.time() + seconds, JOINER, "")
    line = made.refusal(request)
    assert f"the clock of {JOINER} is {abs(seconds):.0f} s {how} that of the head {HOST}" in line
    assert "NTP" in line


def test_translated_addresses_are_refused(made: Made) -> None:
    line = made.refusal(a_request(address="192.168.1.5"))
    assert "192.168.1.5" in line
    assert JOINER in line
    assert "--address" in line


def test_a_joiner_that_brings_a_certificate_is_told(made: Made) -> None:
    assert "ask for one" in made.refusal(a_request(address=JOINER))


def test_a_question_changes_nothing(made: Made) -> None:
    answer = made.ask("/v1/check", encode(a_request(address=JOINER)))
    assert answer.status == HTTPStatus.OK
    assert made.secrets.ray_token.encode() not in answer.body


def test_only_the_asking_machine_is_looked_at(made: Made) -> None:
    """Whatever a joiner writes: there is no field for another address."""
    ports = NodePorts(5000, PortRange(5100, 5101), PortRange(5200, 5201))
    body = json.loads(encode(ReachRequest(ports))) | {"host": "192.0.2.77", "address": "192.0.2.77"}
    answer = made.ask("/v1/reach", json.dumps(body).encode(), peer="127.0.0.77")
    found = ReachReply.parse(answer.body).unreachable
    assert set(found) == {str(port) for port in ports.sample()}
    assert set(found.values()) == {"Connection refused"}


@pytest.mark.parametrize(
    "ports",
    [
        None,
        [],
        {"first": 1},
        {"first": 22, "workers": {"first": 5100, "last": 5101}, "data": {"first": 5200, "last": 5201}},
        {"first": 5000, "workers": {"first": 5101, "last": 5100}, "data": {"first": 5200, "last": 5201}},
        {"first": 65533, "workers": {"first": 5100, "last": 5101}, "data": {"first": 5200, "last": 5201}},
        {"first": True, "workers": {"first": 5100, "last": 5101}, "data": {"first": 5200, "last": 1 << 70}},
    ],
)
def test_ports_that_are_none_are_refused(made: Made, ports: object) -> None:
    answer = made.ask("/v1/reach", json.dumps({"ports": ports}).encode())
    assert answer.status == HTTPStatus.BAD_REQUEST


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda value: json.dumps(value).encode(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["versions", "time", "address", "request", "ports", "first", "x"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_whatever_is_said_is_read_or_refused(data: bytes) -> None:
    for kind in (EnrolRequest, ReachRequest, ReachReply, Enrolled):
        with suppress(MessageError):
            kind.parse(data)
