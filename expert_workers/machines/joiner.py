"""A machine that joins a cluster: it is looked at, enrolled, and is a node until a signal.

What ends without one is started again: a node that its head took for dead, a raylet that died.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from expert_workers.machines import certificates, checks, reach
from expert_workers.machines.checks import Level, Row
from expert_workers.machines.cluster_folder import CA, CERT, KEY, RAY_TOKEN, ClusterFolder, Membership
from expert_workers.machines.enrol_client import EnrolClient
from expert_workers.machines.enrol_messages import Enrolled, EnrolRequest
from expert_workers.machines.identity import bring, check_identity
from expert_workers.machines.join_token import JoinToken
from expert_workers.machines.node_environment import node_environment
from expert_workers.machines.node_spec import NodeSpec
from expert_workers.machines.ports import NodePorts
from expert_workers.machines.ray_node import RayNode
from expert_workers.machines.versions import Versions
from expert_workers.machines.wakes import Wakes
from expert_workers.machines.way_to_head import way_rows
from moe_model.errors import ClusterError, ConfigError, HaltedError
from moe_model.files.private_files import read_bounded
from moe_model.machine import usable_cores

logger = logging.getLogger(__name__)

# Seconds between two tries of a node that does not start or does not stay, and how long it has to stay for
# the next try to be soon again.
_FIRST_PAUSE, _LONGEST_PAUSE, _STAYED = 0.5, 4.0, 30.0
# Seconds between two looks at the head, and after which it counts as gone.
_LOOK, _GONE = 3.0, 10.0


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """`host` and `port` of the head's enrolment; `address` None: ours on the way there. `head_timeout`:
    seconds without a head after which a node that was in the cluster gives up."""

    host: str
    port: int
    token_file: Path
    folder: Path
    address: str | None
    ports: NodePorts
    certificates: Path | None
    cache: Path
    head_timeout: float
    environment: Mapping[str, str]


def run_join(
    plan: JoinPlan,
    wakes: Wakes,
    tell: Callable[[Row], None],
    ready: Callable[[Membership], None],
    leave: Callable[[ClusterFolder], None],
) -> None:
    """`tell` gets each check, `leave` gets the folder when the first signal has come and the node still runs.
    Raises HaltedError when the signal came before; ClusterError, ConfigError."""
    with ExitStack() as stack:
        folder = ClusterFolder.create(plan.folder)
        stack.enter_context(folder.held())
        folder.stays()
        enrolment = _Enrolment(plan, wakes, tell)
        membership = enrolment.into(folder)
        environment = node_environment(folder, membership, plan.environment)
        spec = NodeSpec(membership.head, membership.address, False, usable_cores().number, membership.ports)
        staying = _Staying(spec, environment, wakes, plan.head_timeout, enrolment.client, folder)
        staying.run(lambda: ready(membership), lambda: leave(folder))


class _Enrolment:
    """From a token to a folder with all that a node needs."""

    def __init__(self, plan: JoinPlan, wakes: Wakes, tell: Callable[[Row], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._failed: list[str] = []
        token = JoinToken.read(plan.token_file)
        _check_brought(plan, token)
        self.client = EnrolClient(plan.host, plan.port, token, plan.address, wakes.halt)

    def into(self, folder: ClusterFolder) -> Membership:
        """Raises ClusterError where a check has failed, after all have been told."""
        plan = self._plan
        for row in checks.machine_rows(plan.cache):
            self._say(row)
        self._say(checks.free_ports(plan.ports.all(), plan.ports))
        self._require()
        ca, address = self.client.trust()
        self._say(Row("head", Level.OK, f"{self.client.where} is the one of the join token"))
        key = certificates.new_key()
        request = b"" if plan.certificates else certificates.request_for(key)
        enrolled = self.client.enrol(EnrolRequest(Versions.here(), time.time(), address, request.decode()))
        self._say(Row("token, versions, clock", Level.OK, "as the head's"))
        for row in way_rows(self.client, plan.ports, address, enrolled.head, enrolled.head_ports):
            self._say(row)
        self._require()
        return _keep(folder, plan, enrolled, ca, key, address)

    def _say(self, row: Row) -> None:
        self._tell(row)
        if row.level is Level.ERROR:
            self._failed.append(f"{row.name}: {row.said}; {row.todo}")

    def _require(self) -> None:
        if self._failed:
            raise ClusterError(f"this machine cannot join: {' | '.join(self._failed)}")


def _check_brought(plan: JoinPlan, token: JoinToken) -> None:
    """Raises ConfigError unless the joiner has certificates where the cluster wants it to have some."""
    if token.brings != (plan.certificates is not None):
        raise ConfigError(
            "this cluster's machines bring certificates of their own: say --certificates DIR"
            if token.brings
            else "this cluster's head makes the certificates: leave out --certificates"
        )
    if plan.certificates is not None:
        path = plan.certificates / CA
        if certificates.fingerprint(read_bounded(path, "certificates")) != token.ca:
            raise ConfigError(f"certificates {path}: is not the CA that the join token names")


def _keep(
    folder: ClusterFolder, plan: JoinPlan, enrolled: Enrolled, ca: bytes, key: bytes, address: str
) -> Membership:
    if plan.certificates is None:
        folder.write(CA, ca)
        folder.write(KEY, key)
        folder.write(CERT, enrolled.certificate.encode())
    else:
        bring(folder, plan.certificates)
    check_identity(folder, address)
    folder.write(RAY_TOKEN, enrolled.ray_token.encode())
    membership = Membership(enrolled.head, address, is_head=False, has_tls=enrolled.has_tls, ports=plan.ports)
    folder.remember(membership)
    return membership


class _Staying:
    """Keeps one node in the cluster."""

    def __init__(
        self,
        spec: NodeSpec,
        environment: Mapping[str, str],
        wakes: Wakes,
        patience: float,
        client: EnrolClient,
        folder: ClusterFolder,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._client = client
        self._run = ""
        self._environment = environment
        self._wakes = wakes
        self._patience = patience
        self._pause = _FIRST_PAUSE

    def run(self, ready: Callable[[], None], leave: Callable[[], None]) -> None:
        """Until a signal, or until `expertmesh leave` has ended the node. Raises ClusterError where the head
        does not come back, or Ray does not start; HaltedError where the signal came while there was no
        node."""
        node = self._start()
        ready()
        while True:
            began = time.monotonic()
            try:
                why = self._wait_lost(node)
            except HaltedError:
                # The node is still there, for it to be left.
                leave()
                return
            finally:
                node.end()
            if time.monotonic() - began > _STAYED:
                self._pause = _FIRST_PAUSE
            if self._folder.is_leaving:
                # By a command on this machine, which says how that went.
                return
            logger.warning("%s; the node is started again", why)
            node = self._start_again()
            logger.warning("the node is in the cluster again")

    def _wait_lost(self, node: RayNode) -> str:
        """Why there is no node any more. Raises HaltedError."""
        gone_since = None
        while True:
            if name := node.wait_lost(self._wakes, _LOOK):
                return f"Ray's {name} has ended"
            try:
                self._require_head()
                if self._is_another_head():
                    return "the head was started again"
                gone_since = None
            except ClusterError as error:
                # Its head has long taken it for dead then, and Ray itself would wait for a minute.
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > _GONE:
                    return str(error)

    def _is_another_head(self) -> bool:
        """Ray itself would find out after a minute. A head that does not answer says nothing."""
        try:
            request = EnrolRequest(Versions.here(), time.time(), self._spec.address, "")
            before, self._run = self._run, self._client.check(request).run
        except ClusterError:
            return False
        return before not in ("", self._run)

    def _require_head(self) -> None:
        """Raises ClusterError where nothing accepts connections there: load alone is no such case."""
        host, _, port = self._spec.head.rpartition(":")
        for why in reach.unreachable(host, [int(port)], self._spec.address).values():
            raise ClusterError(f"Ray's head {self._spec.head} cannot be reached: {why}")

    def _start(self) -> RayNode:
        # Ray would load its libraries first, and then try for a minute.
        self._require_head()
        # Before there is a node: if it is started again meanwhile, that is seen.
        self._run = ""
        self._is_another_head()
        return RayNode.start(self._spec, self._environment, self._wakes)

    def _start_again(self) -> RayNode:
        deadline = time.monotonic() + self._patience
        while True:
            self._wakes.pause(self._pause)
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
            try:
                return self._start()
            except ClusterError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{error}; tried for {self._patience:g} s (--head-timeout): start the head again, "
                        "then join again"
                    ) from None
                logger.warning("%s; it is tried again", error)
