"""A whole life of a server with real Ray workers, as health watchers and running requests see it.

starting -> serving -> a worker hangs -> serving -> a worker dies, which has no replica -> serving -> draining
"""

import os
import queue
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh import ControlClient
from expertmesh.v1 import control_pb2 as pb_control
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.answers import chunks_of
from tests.coordinator.api.fakes import failure
from tests.integration.processes import DEMO_CHECKPOINT, Server, stop
from tests.integration.test_serve import worker_pid

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Of a worker that has failed again and again, the next try is a minute later.
PATIENCE = 150.0
# No step takes so long.
EXPERT_WAIT, STALL = "0.3", "2"
TIMES = ["--expert-wait-timeout", EXPERT_WAIT, "--stall-timeout", STALL, "--call-timeout", "60"]
# Nothing takes a lost worker's place, and its experts' files are away until they are put back: requests fail,
# however quick a worker is back.
LOSS = ["--on-expert-loss", "wait"]
ENDLESS = {"max_tokens": 4000, "ignore_eos": True, "context_overflow": "slide"}


class Watch:
    """What one watcher of readiness is told, in order, and what HTTP then says."""

    def __init__(self, channel: grpc.Channel, http: httpx.Client) -> None:
        self._http = http
        self._heard: queue.Queue[int] = queue.Queue()
        stub: Any = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        threading.Thread(target=self._listen, args=(call,), daemon=True).start()

    def _listen(self, call: Any) -> None:
        try:
            for response in call:
                self._heard.put(response.status)
        except grpc.RpcError:
            return

    def hear(self, status: int, reason: str = "") -> None:
        """The next change is to this, and HTTP agrees."""
        assert self._heard.get(timeout=PATIENCE) == status
        response = self._http.get("/health")
        if status == SERVING:
            assert (response.status_code, response.json()) == (200, {})
        else:
            assert response.status_code == 503
            assert any(reason in text for text in response.json()["reasons"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    stop(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def endless_message() -> pb.GenerateRequest:
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[2, 5, 6]))
    message.stopping.MergeFrom(pb.StoppingParams(max_tokens=4000, ignore_eos=True))
    message.stopping.context_overflow = pb.CONTEXT_OVERFLOW_SLIDE
    return message


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """What is in it can be read by those that have it open already, and by no other."""
    aside = folder.rename(folder.with_name("aside"))
    try:
        yield
    finally:
        aside.rename(folder)


def test_a_server_s_life(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(DEMO_CHECKPOINT, tmp_path / "checkpoint"))
    ports = {name: free_port() for name in ("grpc", "http")}
    addresses = [f"--{name}-address=127.0.0.1:{port}" for name, port in ports.items()]
    with (
        Server(str(checkpoint), *TIMES, *LOSS, *addresses, log=tmp_path / "log") as server,
        grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel,
        httpx.Client(base_url=f"http://127.0.0.1:{ports['http']}", timeout=PATIENCE) as http,
    ):
        watch = Watch(channel, http)
        watch.hear(NOT_SERVING, "starting")
        server.wait_ready()
        watch.hear(SERVING)
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        check_a_hang(server, stub, watch)
        check_a_death(server, stub, http, watch, checkpoint)
        check_an_end(server, stub, watch)


def check_a_hang(server: Server, stub: Any, watch: Watch) -> None:
    stream = stub.GenerateStream(endless_message())
    events = [next(stream), next(stream)]
    with stopped(worker_pid(server.log, rank=0)):
        watch.hear(NOT_SERVING, f"no step in {STALL} s")
    watch.hear(SERVING)
    events += [next(stream), next(stream)]
    assert [event.WhichOneof("event") for event in events] == ["prompt", "delta", "delta", "delta"]
    stream.cancel()


def check_a_death(server: Server, stub: Any, http: httpx.Client, watch: Watch, checkpoint: Path) -> None:
    """Every request that runs ends, and says why; so does one that comes before the worker is back."""
    with ControlClient(server.address_of("control")) as control, away(checkpoint / "experts"):
        check_failures(server, stub, http, control)
        watch.hear(NOT_SERVING, "experts have no live worker: layer 0: ")
        check_shown(control)
    watch.hear(SERVING)
    assert "worker 1 lost" in server.log, "the fault happened"
    message = endless_message()
    message.stopping.max_tokens = 2
    assert stub.Generate(message, timeout=PATIENCE).usage.completion_tokens == 2


def check_failures(server: Server, stub: Any, http: httpx.Client, control: ControlClient) -> None:
    body = {"prompt": [2, 5, 6], **ENDLESS}
    with ThreadPoolExecutor() as threads:
        stream = stub.GenerateStream(endless_message())
        whole = threads.submit(http.post, "/v1/completions", json=body)
        streamed = threads.submit(http.post, "/v1/completions", json={**body, "stream": True})
        reader = threads.submit(list, stream)
        until_running(control, 3)
        before = time.monotonic()
        os.kill(worker_pid(server.log, rank=1), signal.SIGKILL)
        check_ends(reader, whole.result(PATIENCE), streamed.result(PATIENCE))
        assert time.monotonic() - before < 30, "as long as lost experts are waited for, and no longer"
        late = stub.Generate.future(endless_message())
        assert failure_of(late).reason == "EXPERT_WORKER_LOST"


def check_shown(control: ControlClient) -> None:
    """A worker without experts that it should hold is not called ready, and says what it lacks, and why."""
    deadline = time.monotonic() + PATIENCE
    while not (lacking := [worker for worker in control.topology() if worker.problem]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for worker in lacking:
        assert worker.state == pb_control.ExpertWorker.STATE_INCOMPLETE
        assert "experts/" in worker.problem
        assert worker.missing
    assert any(module.missing for module in control.experts())


def until_running(control: ControlClient, num_running: int, num_waiting: int = 0) -> None:
    deadline = time.monotonic() + PATIENCE
    while (load := control.load()).running_requests != num_running or load.waiting_requests != num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def failure_of(call: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call.result(PATIENCE)
    return failure(caught.value)  # type: ignore[arg-type]


def check_ends(reader: "Future[list[Any]]", whole: httpx.Response, streamed: httpx.Response) -> None:
    failed = failure_of(reader)
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "EXPERT_WORKER_LOST")
    assert failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "expert_worker_lost")
    assert whole.headers["retry-after"]
    assert streamed.status_code == 200
    *chunks, last = chunks_of(streamed.text)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert last["error"]["code"] == "expert_worker_lost"


def check_an_end(server: Server, stub: Any, watch: Watch) -> None:
    stream = stub.GenerateStream(endless_message())
    next(stream)
    server.process.send_signal(signal.SIGTERM)
    watch.hear(NOT_SERVING, "draining")
    assert next(stream).HasField("delta")
    stream.cancel()
    assert server.process.wait(PATIENCE) == 0
