"""Before Ray connects: whether the cluster is there, lets us in and fits, within seconds and in one line.

Ray itself tries for 20 seconds with a wrong token and for more than 40 where TLS does not match, and ends the
process where nothing answers. So its head is asked first, in its own protocol: the messages that Ray
generates are the one private thing this needs of it, and the rule by which Ray compares versions.
"""

import ipaddress
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from ray._private.utils import check_version_info, compute_version_info
from ray.core.generated import gcs_pb2, gcs_service_pb2

from expert_workers.cluster.ray_environment import AUTH_MODE, TOKEN_PATH, RayAccess
from expert_workers.cluster.ray_tls import RAY_TLS, check_transport
from expert_workers.tls import TlsPaths, check_own
from moe_model.errors import ClusterError, ConfigError

# A bit less than the 5 s that are promised.
PATIENCE = 4.5
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_GET_NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeAddressAndLiveness"
_GET_KEY = "/ray.rpc.InternalKVGcsService/InternalKVGet"
_MESSAGES: Any = gcs_service_pb2
_NODES: Any = gcs_pb2
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A cluster that can be used: whether it asks for a token, and the addresses of its nodes."""

    wants_token: bool
    hosts: frozenset[str]


def preflight(
    address: str,
    host: str,
    port: int,
    access: RayAccess,
    *,
    insecure: bool = False,
    patience: float = PATIENCE,
) -> None:
    """`address` is what the user wrote. Raises ConfigError, ClusterError; each says what to do."""
    deadline = time.monotonic() + patience
    if access.tls is not None:
        check_own(access.tls, what=RAY_TLS)
    where = f"Ray at {address}"
    check_transport(where, host, port, access.tls, deadline)
    head = _Head(where, host, port, access, deadline)
    try:
        found = head.look()
    finally:
        head.close()
    check_policy(where, address, found, insecure)


def check_policy(where: str, address: str, found: Found, insecure: bool) -> None:
    """Refuses other machines' clusters that let everybody in. Raises ConfigError."""
    if found.wants_token:
        return
    if not insecure and not (_is_loopback(address) and len(found.hosts) <= 1):
        raise ConfigError(
            f"{where} runs without token authentication, and any process that reaches it can run code there; "
            f"start it with {AUTH_MODE}=token, or say --insecure"
        )
    _log.warning(
        "INSECURE: %s runs without token authentication: any process that reaches it can run code", where
    )


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Head:
    """Calls to Ray's head (its GCS), which all end at one deadline."""

    def __init__(self, where: str, host: str, port: int, access: RayAccess, deadline: float) -> None:
        self._where = where
        self._access = access
        self._deadline = deadline
        self._metadata: tuple[tuple[str, str], ...] = ()
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = None if access.tls is None else _credentials(access.tls)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=_OPTIONS)

    def close(self) -> None:
        self._channel.close()

    def look(self) -> Found:
        """Raises ClusterError."""
        alive = self._check_alive()
        wants_token = alive is None
        if alive is None:
            alive = self._check_alive_with_token()
        elif self._access.token is not None:
            raise ClusterError(
                f"{self._where} runs without token authentication, and {AUTH_MODE}=token is set here: "
                f"start it with {AUTH_MODE}=token, or unset it"
            )
        self._check_versions(alive.ray_version)
        return Found(wants_token, self._hosts())

    def _check_alive(self) -> Any:
        """The answer; None when it wants another token, or one at all."""
        request = _MESSAGES.CheckAliveRequest()
        try:
            return self._call(_CHECK_ALIVE, request, _MESSAGES.CheckAliveReply)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return None
            raise self._failed(error) from None

    def _check_alive_with_token(self) -> Any:
        if self._access.token is None:
            raise ClusterError(
                f"{self._where} wants a token: set {AUTH_MODE}=token, and {TOKEN_PATH} to a copy of its file"
            )
        self._metadata = (("authorization", f"Bearer {self._access.token}"),)
        alive = self._check_alive()
        if alive is None:
            raise ClusterError(
                f"{self._where} does not accept the token of {self._access.source}: it is not this cluster's"
            )
        return alive

    def _check_versions(self, ray_version: str) -> None:
        """By Ray's own rule, which `ray.init` would apply later and at more length."""
        ours = _our_versions()
        theirs = {**ours, **self._versions(), "ray_version": ray_version}
        try:
            check_version_info(theirs, "this process")
        except RuntimeError:
            versions = [
                f"Ray {each['ray_version']} on Python {each['python_version']}" for each in (theirs, ours)
            ]
            raise ClusterError(
                f"{self._where} cannot be used: it is {versions[0]}, and here is {versions[1]}; "
                "install the same everywhere"
            ) from None

    def _versions(self) -> dict[str, str]:
        """What the head wrote down when it started; nothing while it still does."""
        request = _MESSAGES.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
        try:
            value = self._call(_GET_KEY, request, _MESSAGES.InternalKVGetReply).value
            python_version = json.loads(value or b"{}").get("python_version")
        except grpc.RpcError as error:
            raise self._failed(error) from None
        except (ValueError, AttributeError):
            raise ClusterError(
                f"{self._where} cannot be used: it does not say which versions it runs"
            ) from None
        return {"python_version": str(python_version)[:40]} if python_version else {}

    def _hosts(self) -> frozenset[str]:
        request = _MESSAGES.GetAllNodeAddressAndLivenessRequest()
        try:
            reply = self._call(_GET_NODES, request, _MESSAGES.GetAllNodeAddressAndLivenessReply)
        except grpc.RpcError as error:
            raise self._failed(error) from None
        alive = _NODES.GcsNodeInfo.ALIVE
        return frozenset(node.node_manager_address for node in reply.node_info_list if node.state == alive)

    def _call(self, method: str, request: Any, reply: Any) -> Any:
        call = self._channel.unary_unary(method, type(request).SerializeToString, reply.FromString)
        timeout = max(0.001, self._deadline - time.monotonic())
        return call(request, timeout=timeout, metadata=self._metadata)

    def _failed(self, error: grpc.RpcError) -> ClusterError:
        """Not the head's words: what they hold is not known."""
        code = error.code().name
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return ClusterError(f"{self._where} cannot be used: something else listens there")
        return ClusterError(f"{self._where} cannot be used: it does not answer as Ray does ({code})")


def _our_versions() -> dict[str, str]:
    ray_version, python_version = compute_version_info()  # type: ignore[no-untyped-call]
    return {"ray_version": ray_version, "python_version": python_version}


def _credentials(paths: TlsPaths) -> grpc.ChannelCredentials:
    ca, key, cert = (Path(path).read_bytes() for path in (paths.ca, paths.key, paths.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)
