"""The questions to Ray's head, asked of a server that gives whatever answers a test wants."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_pb2, gcs_service_pb2

from expert_workers.cluster.ray_environment import RayAccess
from expert_workers.cluster.ray_preflight import Found, check_policy, preflight
from moe_model.errors import ClusterError, ConfigError

MESSAGES: Any = gcs_service_pb2
NODES: Any = gcs_pb2
HERE, THERE, OPEN, CLOSED = "127.0.0.1:1", "192.0.2.1:1", Found(False, frozenset()), Found(True, frozenset())
Answer = Callable[[Any, grpc.ServicerContext], Any]


def alive(_: Any, __: grpc.ServicerContext) -> Any:
    return MESSAGES.CheckAliveReply(ray_version=ray.__version__)


def no_versions(_: Any, __: grpc.ServicerContext) -> Any:
    return MESSAGES.InternalKVGetReply()


def versions(value: bytes) -> Answer:
    return lambda _, __: MESSAGES.InternalKVGetReply(value=value)


def nodes(*addresses: str, state: int = 0) -> Answer:
    reply = MESSAGES.GetAllNodeAddressAndLivenessReply()
    for address in addresses:
        reply.node_info_list.add(node_manager_address=address, state=state)
    return lambda _, __: reply


one_node = nodes("127.0.0.1")


def failing(code: grpc.StatusCode) -> Answer:
    return lambda _, context: context.abort(code, "with the path /secret")


@contextmanager
def serving(alive: Answer = alive, versions: Answer = no_versions, nodes: Answer = one_node) -> Iterator[int]:
    answers = {
        "CheckAlive": ("NodeInfoGcsService", alive, MESSAGES.CheckAliveRequest),
        "GetAllNodeAddressAndLiveness": (
            "NodeInfoGcsService",
            nodes,
            MESSAGES.GetAllNodeAddressAndLivenessRequest,
        ),
        "InternalKVGet": ("InternalKVGcsService", versions, MESSAGES.InternalKVGetRequest),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    for name, (service, answer, request) in answers.items():
        handler: Any = grpc.unary_unary_rpc_method_handler(
            answer, request.FromString, lambda r: r.SerializeToString()
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(f"ray.rpc.{service}", {name: handler})]
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def look(port: int, access: RayAccess | None = None, **options: Any) -> None:
    preflight(f"127.0.0.1:{port}", "127.0.0.1", port, access or RayAccess(), **options)


def test_a_head_that_fits() -> None:
    ours = json.dumps({"ray_version": ray.__version__}).encode()
    for found in (no_versions, versions(ours), versions(b"{}")):
        with serving(versions=found) as port:
            look(port)


def test_another_ray() -> None:
    with (
        serving(alive=lambda _, __: MESSAGES.CheckAliveReply(ray_version="2.59.0")) as port,
        pytest.raises(
            ClusterError, match=rf"it is Ray 2\.59\.0 on .*, and here is Ray {ray.__version__} on "
        ),
    ):
        look(port)


@pytest.mark.parametrize("value", [b"\xff", b"[]", b"7", b"{"])
def test_versions_that_are_none(value: bytes) -> None:
    with (
        serving(versions=versions(value)) as port,
        pytest.raises(ClusterError, match="does not say which versions"),
    ):
        look(port)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.PERMISSION_DENIED])
def test_errors_are_told_without_the_words_of_strangers(code: grpc.StatusCode) -> None:
    for where in ("alive", "versions", "nodes"):
        with serving(**{where: failing(code)}) as port, pytest.raises(ClusterError) as raised:
            look(port)
        assert str(raised.value) == (
            f"Ray at 127.0.0.1:{port} cannot be used: it does not answer as Ray does ({code.name})"
        )


def test_a_server_that_is_no_ray() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ClusterError, match="something else listens there"):
        look(port)
    server.stop(None).wait()


def test_all_calls_end_at_one_deadline() -> None:
    def late(_: Any, context: grpc.ServicerContext) -> Any:
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(20)

    started = time.monotonic()
    with serving(nodes=late) as port, pytest.raises(ClusterError, match="DEADLINE_EXCEEDED"):
        look(port, patience=1.2)
    assert time.monotonic() - started < 5


def test_the_token_is_shown_only_to_who_asks_for_one() -> None:
    seen: list[Any] = []

    def recorded(_: Any, context: grpc.ServicerContext) -> Any:
        seen.extend(value for name, value in context.invocation_metadata() if name == "authorization")
        return alive(None, context)

    with (
        serving(alive=recorded) as port,
        pytest.raises(ClusterError, match="runs without token authentication"),
    ):
        look(port, RayAccess("secret", "here"))
    assert seen == []


@pytest.mark.parametrize(
    ("address", "found", "insecure", "outcome"),
    [
        (HERE, CLOSED, False, "quiet"),
        (THERE, CLOSED, False, "quiet"),
        (THERE, CLOSED, True, "quiet"),
        (HERE, OPEN, False, "warned"),
        ("localhost:1", OPEN, False, "warned"),
        ("[::1]:1", OPEN, False, "warned"),
        (HERE, Found(False, frozenset({"192.0.2.2"})), False, "warned"),
        (HERE, Found(False, frozenset({"192.0.2.2", "192.0.2.3"})), False, "refused"),
        (HERE, Found(False, frozenset({"192.0.2.2", "192.0.2.3"})), True, "warned"),
        (THERE, OPEN, False, "refused"),
        (THERE, OPEN, True, "warned"),
        ("auto", OPEN, False, "refused"),
        ("auto", OPEN, True, "warned"),
        ("localhost.example:1", OPEN, False, "refused"),
        ("0.0.0.0:1", OPEN, False, "refused"),
    ],
)
def test_who_may_do_without_a_token(
    address: str, found: Found, insecure: bool, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    if outcome == "refused":
        with pytest.raises(ConfigError, match=r"RAY_AUTH_MODE=token, or say --insecure$"):
            check_policy("Ray at X", address, found, insecure)
    else:
        check_policy("Ray at X", address, found, insecure)
    assert [message.partition(" ")[0] for message in caplog.messages] == ["INSECURE:"] * (outcome == "warned")


def test_dead_nodes_count_for_nothing() -> None:
    with serving(nodes=nodes("127.0.0.1", "192.0.2.9", state=NODES.GcsNodeInfo.DEAD)) as port:
        look(port)
    with (
        serving(nodes=nodes("127.0.0.1", "192.0.2.9")) as port,
        pytest.raises(ConfigError, match="without token authentication"),
    ):
        look(port)
