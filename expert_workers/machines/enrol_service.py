"""EnrolService: what a head answers joiners, from what they asked; knows no sockets."""

import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from secrets import token_hex
from typing import Protocol

from expert_workers.machines.certificates import Authority
from expert_workers.machines.cluster_folder import Membership
from expert_workers.machines.enrol_messages import (
    BYTES_PATH,
    CA_PATH,
    CHECK_PATH,
    ENROL_PATH,
    LINK_BYTES,
    MAX_CLOCK_DIFFERENCE,
    REACH_PATH,
    Checked,
    Enrolled,
    EnrolRequest,
    MessageError,
    ReachReply,
    ReachRequest,
    encode,
)
from expert_workers.machines.reach import unreachable
from expert_workers.machines.versions import Versions
from moe_model.errors import ConfigError

logger = logging.getLogger(__name__)

# A peer's key in the limits, where all who are let in have the same one.
_NAME = "join"


class Slows(Protocol):
    """Makes peers with wrong secrets wait."""

    def wait(self, peer: str, name: str | None) -> float: ...

    def failed(self, peer: str) -> None: ...

    def succeeded(self, peer: str, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the head has for joiners; `authority` is None where they bring their own certificates."""

    ca: bytes
    authority: Authority | None
    join_secret: str
    ray_token: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. `peer` is the address that it came from."""

    method: str
    path: str
    bearer: str
    body: bytes
    peer: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`retry_after`: in seconds, of a peer that has to wait."""

    status: HTTPStatus
    body: bytes
    retry_after: float = 0.0


class RefusedError(Exception):
    """One line for the joiner."""

    def __init__(self, status: HTTPStatus, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class EnrolService:
    """Any thread may call it."""

    def __init__(
        self, secrets: Secrets, membership: Membership, slows: Slows, clock: Callable[[], float] = time.time
    ) -> None:
        self._secrets = secrets
        self._membership = membership
        self._slows = slows
        self._run = token_hex(8)
        self._lock = threading.Lock()
        self._clock = clock
        self._routes: dict[tuple[str, str], Callable[[Asked], bytes]] = {
            ("POST", CHECK_PATH): self._may_join,
            ("POST", ENROL_PATH): self._enrol,
            ("POST", REACH_PATH): self._reach,
            ("GET", BYTES_PATH): lambda _: bytes(LINK_BYTES),
        }

    def answer(self, asked: Asked) -> Answer:
        try:
            if (asked.method, asked.path) == ("GET", CA_PATH):
                return Answer(HTTPStatus.OK, self._secrets.ca)
            # Who has no secret does not hear which paths there are.
            self._check_secret(asked)
            route = self._routes.get((asked.method, asked.path))
            if route is None:
                raise RefusedError(HTTPStatus.NOT_FOUND, "the head does not know this question")
            return Answer(HTTPStatus.OK, route(asked))
        except RefusedError as error:
            return Answer(error.status, json.dumps({"error": str(error)}).encode(), error.retry_after)
        except (MessageError, ConfigError) as error:
            refused = json.dumps({"error": f"the head does not understand it: {error}"})
            return Answer(HTTPStatus.BAD_REQUEST, refused.encode())

    def _check_secret(self, asked: Asked) -> None:
        is_right = hmac.compare_digest(asked.bearer.encode(), self._secrets.join_secret.encode())
        with self._lock:
            wait = self._slows.wait(asked.peer, _NAME if is_right else None)
            if wait > 0:
                raise RefusedError(
                    HTTPStatus.TOO_MANY_REQUESTS, f"too many wrong tokens; wait {wait:.0f} s", wait
                )
            if is_right:
                self._slows.succeeded(asked.peer, _NAME)
                return
            self._slows.failed(asked.peer)
        logger.warning("%s showed a wrong join token", asked.peer)
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "the join token is not this cluster's")

    def _may_join(self, asked: Asked) -> bytes:
        self._check(EnrolRequest.parse(asked.body), asked.peer)
        return encode(Checked(self._membership.head, self._membership.ports, self._run))

    def _enrol(self, asked: Asked) -> bytes:
        request, ours = EnrolRequest.parse(asked.body), self._membership
        try:
            self._check(request, asked.peer)
        except RefusedError as error:
            logger.warning("%s may not join: %s", asked.peer, error)
            raise
        certificate = b""
        if self._secrets.authority is not None:
            if not request.request:
                raise RefusedError(
                    HTTPStatus.CONFLICT,
                    f"the head {ours.address} makes the certificates: ask for one",
                )
            certificate = self._secrets.authority.sign(request.request.encode(), request.address)
        elif request.request:
            raise RefusedError(
                HTTPStatus.CONFLICT,
                f"the head {ours.address} makes no certificates: bring one (--certificates DIR)",
            )
        logger.info("%s has joined, %s", asked.peer, request.address)
        return encode(
            Enrolled(ours.head, ours.ports, ours.has_tls, certificate.decode(), self._secrets.ray_token)
        )

    def _check(self, request: EnrolRequest, peer: str) -> None:
        """Raises RefusedError, naming both sides and what to do."""
        here = f"the head {self._membership.address}"
        for what, ours, theirs in Versions.here().differences(request.versions):
            raise RefusedError(
                HTTPStatus.CONFLICT,
                f"{request.address} has {what} {theirs[:40]}, and {here} has {ours}; install the same",
            )
        ahead = request.time - self._clock()
        if abs(ahead) > MAX_CLOCK_DIFFERENCE:
            how = "ahead of" if ahead > 0 else "behind"
            raise RefusedError(
                HTTPStatus.CONFLICT,
                f"the clock of {request.address} is {abs(ahead):.0f} s {how} that of {here}; set both by NTP "
                "(timedatectl set-ntp true)",
            )
        if request.address != peer:
            raise RefusedError(
                HTTPStatus.CONFLICT,
                f"{here} sees {request.address} as {peer}: addresses are translated between them, which Ray "
                f"cannot work through; say the one that all machines reach (--address)",
            )

    def _reach(self, asked: Asked) -> bytes:
        """Only of the machine that asks: no caller can have the head look at others."""
        found = unreachable(asked.peer, ReachRequest.parse(asked.body).ports.sample())
        return encode(ReachReply({str(port): why for port, why in found.items()}))
