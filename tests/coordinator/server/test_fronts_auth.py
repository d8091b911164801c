"""Who may do what: every method of the gRPC ports and every route of HTTP, there or not, for every caller."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from starlette.routing import Route

from coordinator.api.security.api_keys import key_of
from coordinator.config.security import SecurityConfig
from coordinator.server.fronts import Fronts
from expertmesh.v1 import control_pb2, generation_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.certificates import write_private
from tests.coordinator.api.fakes import failure_of
from tests.coordinator.api.grpc.test_auth import METHODS
from tests.coordinator.api.http_fakes import Http
from tests.coordinator.fronts_fakes import World, make_fronts, open_fronts, opening

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = {"nobody": "", "alice": "em-alice-alice-alice", "root": "em-root-root-root-root"}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# This server has no workers to scale and no experts to exchange.
LACKING = {
    f"/expertmesh.v1.ControlService/{name}"
    for name in ("Scale", "ListExperts", "ReplaceExpert", "AddExpert", "RemoveExpert")
}
OPEN = {"/health", "/readyz", "/ping", "/livez"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fronts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fronts]:
    lines = [key_of("alice", KEYS["alice"]).line(), key_of("root", KEYS["root"], is_admin=True).line()]
    path = write_private(tmp_path_factory.mktemp("auth") / "keys", "\n".join(lines).encode())
    fronts = make_fronts(security=SecurityConfig(api_key_file=path, reflection=True))
    async with opening(fronts) as engine:
        await open_fronts(fronts, engine, World())
        yield fronts


def methods_of(module: Any) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def expected(port: str, caller: str, method: str) -> str:
    """The code, or empty where the method itself has the word."""
    if caller == "nobody":
        return "UNAUTHENTICATED"
    if port == "control" and caller != "root":
        return "PERMISSION_DENIED"
    there = {"grpc": methods_of(pb), "control": methods_of(control_pb2)}[port] | {REFLECTION}
    return "" if method in there else "UNIMPLEMENTED"


async def code_of(channel: grpc.aio.Channel, method: str, key: str) -> str:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    call: Any = channel.unary_stream(method)
    try:
        async for _ in call(b"", metadata=metadata):
            return "OK"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("port", ["grpc", "control"])
async def test_every_method(port: str, fronts: Fronts) -> None:
    """An empty message: some methods take it, and some say what it lacks."""
    assert fronts.control is not None
    address = {"grpc": fronts.grpc.address, "control": fronts.control.address}[port]
    for caller, key in KEYS.items():
        async with grpc.aio.insecure_channel(address) as channel:
            for method in METHODS:
                code = await code_of(channel, method, key)
                where = (port, caller, method)
                wanted = expected(port, caller, method)
                own = {"OK", "INVALID_ARGUMENT"} | ({"UNIMPLEMENTED"} if method in LACKING else set())
                assert code in ({wanted} if wanted else own), where
            assert await code_of(channel, "/grpc.health.v1.Health/Check", key) == "OK"


@pytest.mark.parametrize("port", ["grpc", "control"])
async def test_a_key_that_is_none_is_worth_no_more_than_none(port: str, fronts: Fronts) -> None:
    assert fronts.control is not None
    address = {"grpc": fronts.grpc.address, "control": fronts.control.address}[port]
    async with grpc.aio.insecure_channel(address) as channel:
        for key in (KEYS["root"] + "x", KEYS["root"][:-1], KEYS["root"].upper()):
            call: Any = channel.unary_unary("/expertmesh.v1.ControlService/Abort")
            failed = await failure_of(call(b"\x10\x01", metadata=(("authorization", f"Bearer {key}"),)))
            assert (failed.code, failed.reason) == ("UNAUTHENTICATED", "INVALID_API_KEY")


def requests() -> list[tuple[str, str]]:
    """Every method of every route, and some that there are not."""
    routes = [route for route in Http().app.routes if isinstance(route, Route)]
    found = [(method, path_of(route)) for route in routes for method in route.methods or ()]
    assert len(found) > 12
    wrong = [(method, path) for method in ("DELETE", "OPTIONS") for _, path in found]
    nowhere = [
        "/",
        "/nope",
        "/v1",
        "/health/",
        "/health/x",
        "/healthx",
        "//health",
        "/metrics/x",
        "/metrics/",
    ]
    return [*found, *wrong, *[("GET", path) for path in nowhere], ("POST", "/v1/completions/")]


def path_of(route: Route) -> str:
    return route.path.replace("{model:path}", "tiny")


async def test_every_route(fronts: Fronts) -> None:
    assert fronts.http is not None
    for caller, key in KEYS.items():
        headers: Mapping[str, str] = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(base_url=f"http://{fronts.http.address}", verify=False) as client:
            for method, path in requests():
                response = await client.request(method, path, headers=headers)
                where = (caller, method, path, response.status_code)
                if path in OPEN and method in ("GET", "HEAD"):
                    assert response.status_code == 200, where
                elif caller == "nobody":
                    assert response.status_code == 401, where
                    assert response.headers["www-authenticate"] == "Bearer"
                else:
                    assert response.status_code in (200, 400, 404, 405), where


async def test_the_metrics_port_is_closed_as_well(fronts: Fronts) -> None:
    assert fronts.metrics is not None
    for key, status in ((KEYS["nobody"], 401), (KEYS["alice"], 200)):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(base_url=f"http://{fronts.metrics.address}", verify=False) as client:
            assert (await client.get("/metrics", headers=headers)).status_code == status
            assert (await client.get("/health", headers=headers)).status_code == 200
            there = await client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
            assert there.status_code == (401 if status == 401 else 404)


async def test_what_one_key_has_cached_is_nothing_to_another(fronts: Fronts) -> None:
    """Over both fronts: how fast an answer comes must not tell what others have asked."""
    assert fronts.http is not None
    address = f"http://{fronts.http.address}"
    prompt = list(range(20, 29))
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), stopping=pb.StoppingParams(max_tokens=1))
    async with (
        grpc.aio.insecure_channel(fronts.grpc.address) as channel,
        httpx.AsyncClient(base_url=address, verify=False) as client,
    ):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]

        async def by_grpc(key: str) -> int:
            answer = await stub.Generate(message, metadata=(("authorization", f"Bearer {KEYS[key]}"),))
            return int(answer.usage.cached_prompt_tokens)

        async def by_http(key: str) -> int:
            headers = {"authorization": f"Bearer {KEYS[key]}"}
            body = {"prompt": prompt, "max_tokens": 1}
            usage = (await client.post("/v1/completions", json=body, headers=headers)).json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert [await by_grpc("alice"), await by_grpc("alice"), await by_http("alice")] == [0, 8, 8]
        assert [await by_http("root"), await by_http("root"), await by_grpc("root")] == [0, 8, 8]
