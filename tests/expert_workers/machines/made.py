"""A head's enrolment without a Ray, and what joiners need of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.api.security.backoff import Backoff
from expert_workers.machines.cluster_folder import JOIN_TOKEN, ClusterFolder, Membership
from expert_workers.machines.enrol_client import EnrolClient
from expert_workers.machines.enrol_messages import EnrolRequest
from expert_workers.machines.enrol_server import EnrolServer
from expert_workers.machines.enrol_service import EnrolService, Secrets
from expert_workers.machines.identity import head_secrets, server_context
from expert_workers.machines.join_token import JoinToken
from expert_workers.machines.ports import NodePorts
from expert_workers.machines.versions import Versions
from moe_model.halt import Halt

HOST = "127.0.0.1"
HEAD = f"{HOST}:6379"


@dataclass(frozen=True, slots=True)
class Enrolling:
    """A head that answers joiners at `port`."""

    folder: ClusterFolder
    port: int

    @property
    def token(self) -> JoinToken:
        return JoinToken.read(self.folder.file(JOIN_TOKEN))

    def client(self, token: JoinToken | None = None, halt: Halt | None = None) -> EnrolClient:
        return EnrolClient(HOST, self.port, token or self.token, None, halt or Halt())


@contextmanager
def serving(
    folder: ClusterFolder, secrets: Secrets, seconds: float = 20.0, clock: Callable[[], float] = time.time
) -> Iterator[Enrolling]:
    """With the certificate that the folder has. `seconds`: the deadline of a connection; `clock` is the
    head's."""
    membership = Membership(HEAD, HOST, is_head=True, has_tls=True, ports=NodePorts())
    server = EnrolServer(HOST, 0, seconds)
    server.start(EnrolService(secrets, membership, Backoff(), clock), server_context(folder))
    try:
        yield Enrolling(folder, server.port)
    finally:
        server.close()


@contextmanager
def enrolling(
    folder: Path,
    *,
    certificates: Path | None = None,
    seconds: float = 20.0,
    clock: Callable[[], float] = time.time,
) -> Iterator[Enrolling]:
    """As a head does it."""
    made = ClusterFolder.create(folder)
    with serving(made, head_secrets(made, HOST, certificates), seconds, clock) as head:
        yield head


def a_request(request: bytes = b"", versions: Versions | None = None, address: str = HOST) -> EnrolRequest:
    return EnrolRequest(versions or Versions.here(), time.time(), address, request.decode())
