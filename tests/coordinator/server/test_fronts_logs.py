"""Logs hold nothing of what a caller says or is told, in either format, whatever comes of the request."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from coordinator.api.security.api_keys import key_of
from coordinator.api.shared.logging_setup import JsonFormatter, TextFormatter
from coordinator.config.security import SecurityConfig
from coordinator.server.fronts import Fronts
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.both_fronts import SaysRunner
from tests.coordinator.api.certificates import write_private
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import tiny_tokenizer
from tests.coordinator.fronts_fakes import World, make_fronts, open_fronts, opening

pytestmark = BOTH_ENGINES

KEY = "em-alice-alice-alice"
MARKER = "MARKER"
# With what would begin a line of its own, move a cursor, or turn the direction of writing.
HOSTILE = f"{MARKER}\n2026-01-01 INFO fake: line\x1b[31m\u202e"
# As far as a header can hold it.
HEADER = f"{MARKER} [31m"
# Ids of proxies are the one thing of a caller's that is logged.
TRACE = 'Root=1-trace "id" 7'


class Sink:
    """What a format makes of everything that is logged here; the clients of the test are not asked."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.text = io.StringIO()
        self.handler = logging.StreamHandler(self.text)
        self.handler.setFormatter(formatter)
        self.handler.addFilter(lambda record: record.name.split(".")[0] not in ("httpx", "httpcore"))

    @property
    def lines(self) -> list[str]:
        return self.text.getvalue().splitlines()


@pytest.fixture(params=["text", "json"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    sink = Sink(TextFormatter() if request.param == "text" else JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(sink.handler)
    root.setLevel(logging.DEBUG)
    yield sink
    root.setLevel(level)
    root.removeHandler(sink.handler)


async def test_markers_everywhere_are_logged_nowhere(tmp_path: Path, sink: Sink) -> None:
    path = write_private(tmp_path / "keys", key_of("alice", KEY).line().encode())
    fronts = make_fronts(security=SecurityConfig(api_key_file=path))
    says = SaysRunner(tiny_tokenizer().encode(MARKER, add_bos=False))
    async with opening(fronts, says) as engine:
        await open_fronts(fronts, engine, World())
        codes = await grpc_codes(fronts)
        statuses = await http_statuses(fronts)
    assert codes == {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "UNIMPLEMENTED"}
    assert statuses == {200, 400, 401, 404, 405}
    text = sink.text.getvalue()
    assert text.count("UNAUTHENTICATED") > 1
    assert text.count("INVALID_ARGUMENT") > 3
    for secret in (MARKER, MARKER.lower(), KEY, "\x1b", "\u202e", "fake: line"):
        assert secret not in text
    assert text.count(json.dumps(TRACE)) > 10
    for line in sink.lines:
        assert json.loads(line)["message"] if line.startswith("{") else line[:2] == "20"


def messages() -> list[pb.GenerateRequest]:
    wrong = pb.GenerateRequest(text=HOSTILE)
    wrong.sampling.top_p = 2
    stops = pb.GenerateRequest(text=HOSTILE, stopping=pb.StoppingParams(stop_sequences=[HOSTILE] * 17))
    return [
        pb.GenerateRequest(text=MARKER),
        pb.GenerateRequest(text=MARKER, request_id=HOSTILE),
        pb.GenerateRequest(text=MARKER, model=HOSTILE),
        pb.GenerateRequest(text=MARKER, constraint=pb.OutputConstraint(regex=HOSTILE)),
        pb.GenerateRequest(chat=pb.ChatPrompt(messages=[pb.ChatPrompt.Message(role=HOSTILE)])),
        wrong,
        stops,
    ]


async def grpc_codes(fronts: Fronts) -> set[str]:
    options = [("grpc.primary_user_agent", HEADER)]
    common = (("x-marker", HEADER), ("traceparent", HEADER), ("tracestate", HEADER))
    found = set()
    async with grpc.aio.insecure_channel(fronts.grpc.address, options) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        unknown: Any = channel.unary_unary(f"/{MARKER}.Service/Method")
        for more in ((), (("x-request-id", TRACE),)):
            metadata = (("authorization", f"Bearer {KEY}"), *common, *more)
            for message in messages():
                found.add(await code_of(stub.Generate(message, metadata=metadata)))
            found.add(await code_of(stub.Tokenize(pb.TokenizeRequest(text=MARKER), metadata=metadata)))
            found.add(await code_of(unknown(MARKER.encode(), metadata=metadata)))
        wrong = (("authorization", f"Bearer em-{MARKER}-{MARKER}"), *common)
        for call in (stub.Generate(messages()[0], metadata=wrong), unknown(b"", metadata=wrong)):
            found.add(await code_of(call))
    return found


async def code_of(call: Any) -> str:
    return str((await call.code()).name)


async def http_statuses(fronts: Fronts) -> set[int]:
    assert fronts.http is not None
    headers = {"user-agent": HEADER, "x-marker": HEADER, "traceparent": HEADER}
    bodies: list[tuple[str, Any]] = [
        ("/v1/completions", {"prompt": MARKER}),
        ("/v1/completions", {"prompt": MARKER, "stream": True}),
        ("/v1/completions", {"prompt": HOSTILE, "request_id": HOSTILE}),
        ("/v1/completions", {"prompt": HOSTILE, "model": HOSTILE}),
        ("/v1/completions", {"prompt": HOSTILE, "top_p": HOSTILE}),
        ("/v1/completions", {"prompt": HOSTILE, "guided_regex": HOSTILE}),
        ("/v1/chat/completions", {"messages": [{"role": HOSTILE, "content": HOSTILE}]}),
        ("/tokenize", {"prompt": MARKER}),
        (f"/{MARKER}", {}),
        (f"/v1/models/{MARKER}?{MARKER}={MARKER}", {}),
    ]
    found = set()
    async with httpx.AsyncClient(base_url=f"http://{fronts.http.address}", verify=False) as client:
        for more in ({}, {"x-request-id": TRACE}):
            every = {**headers, **more, "authorization": f"Bearer {KEY}"}
            for path, body in bodies:
                found.add((await client.post(path, json=body, headers=every)).status_code)
            found.add((await client.get(f"/v1/models/{MARKER}", headers=every)).status_code)
        wrong = {**headers, "authorization": f"Bearer em-{MARKER}"}
        for path, body in (bodies[0], bodies[-2]):
            found.add((await client.post(path, json=body, headers=wrong)).status_code)
    return found


def test_whatever_is_logged_is_one_harmless_line(sink: Sink) -> None:
    """Nobody's words should come so far; if they do, they move no cursor and begin no line."""
    logging.getLogger("coordinator.api").info("words: %s", HOSTILE)
    (line,) = sink.lines
    assert MARKER in line
    assert line.isprintable()
