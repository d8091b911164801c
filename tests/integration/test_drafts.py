"""A server that drafts says what one without says: over both fronts, with the engine's socket in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.config.workers import WorkersConfig
from coordinator.engine.client.base import EngineClient
from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.output import Stop, TextMatch
from coordinator.engine.process.client import ProcessEngine
from coordinator.server.main import RunningServer, open_server
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.engine.process.linked import PATIENCE, serving
from tests.coordinator.engine.speculating import always_draft, watch_drawn
from tests.integration.conftest import CHAT_TEMPLATE
from tests.integration.processes import DEMO_CHECKPOINT
from tests.integration.same_requests import REQUESTS, complete
from tests.integration.test_one_answer import Clients, check_four_ways

# What the model goes on with repeats itself, and so is drafted.
TEXT = "    self.assertEqual(first, 1)\n    self.assertEqual(second, 2)\n" * 4
STOP = "(s, x"
GREEDY = "sampling { temperature: 0 }"
ASKED = {
    "whole": complete(GREEDY, prompt=TEXT, temperature=0, max_tokens=40),
    "logprobs": complete(
        f"{GREEDY} response {{ logprobs: 2 }}", prompt=TEXT, temperature=0, logprobs=2, max_tokens=24
    ),
    "sequences": complete(
        "sampling { seed: 3 temperature: 0.7 num_sequences: 3 } response { logprobs: 1 }",
        prompt=TEXT,
        seed=3,
        temperature=0.7,
        n=3,
        logprobs=1,
        max_tokens=24,
    ),
    "stop": complete(
        f"{GREEDY} stopping {{ stop_sequences: ['{STOP}'] min_tokens: 45 }}",
        prompt=TEXT,
        temperature=0,
        stop=[STOP],
        min_tokens=45,
        max_tokens=64,
    ),
    **{
        f"{length} tokens": complete(GREEDY, prompt=TEXT, temperature=0, max_tokens=length)
        for length in (1, 2, 5, 6, 7)
    },
    **{name: REQUESTS[name] for name in ("sampling of every kind", "scored prompt", "constraint", "routing")},
}


@asynccontextmanager
async def serving_demo(template: Path, speculate: int | None = None) -> AsyncIterator[RunningServer]:
    """The demo model; what fronts and engine say to each other goes through a socket."""
    async with AsyncExitStack() as stack:

        async def over_a_socket(thread: EngineThread, operated: Operated) -> EngineClient:
            path = await stack.enter_async_context(serving(thread, operated))
            return await ProcessEngine.connect(path, PATIENCE)

        config = ServeConfig(
            checkpoint=str(DEMO_CHECKPOINT),
            engine=EngineConfig(block_size=4, num_threads=1, speculate=speculate),
            workers=WorkersConfig(num_workers=0),
            addresses=Addresses("127.0.0.1:0", control=None, http="127.0.0.1:0"),
            model=ModelOptions("demo", chat_template=template, allow_routed_experts=True),
        )
        yield await stack.enter_async_context(open_server(config, make_client=over_a_socket))


def answers(server: RunningServer) -> dict[str, pb.GenerateResponse]:
    """Each is the same four times."""
    assert server.fronts.http is not None
    with (
        grpc.insecure_channel(server.fronts.grpc.address) as channel,
        httpx.Client(base_url=f"http://{server.fronts.http.address}", timeout=60) as http,
    ):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        clients = Clients(stub, http)
        return {name: check_four_ways(each, clients) for name, each in ASKED.items()}


async def test_fronts_say_the_same_with_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT_TEMPLATE)
    async with serving_demo(template) as server:
        expected = await asyncio.to_thread(answers, server)
    always_draft(monkeypatch)
    drawn = watch_drawn(monkeypatch)
    async with serving_demo(template, 4) as server:
        found = await asyncio.to_thread(answers, server)
    assert found == expected
    assert max(each.num_taken for each in drawn) == 5, "a draft and the token after it in one step"
    ended = [each.stop for each in drawn if each.num_taken < each.num_drawn]
    assert Stop(text=TextMatch(STOP.encode(), 0)) in ended, "a text ended inside a draft"
