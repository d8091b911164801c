"""`expertmesh serve` end to end: real Ray, real gRPC, real signals; and nothing left behind."""

import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expertmesh import Client, ClientError, Delta
from moe_model import AssembledModel
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    Server,
    assert_one_line_error,
    children,
    run_command,
    wait_gone,
)
from tests.integration.shared_cluster import Shared

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(str(DEMO_CHECKPOINT), log=tmp_path_factory.mktemp("serve") / "log") as server:
        server.wait_ready()
        yield server


KILLED = [2, 5, 6, 7]


def worker_pid(log: str, rank: int) -> int:
    found = re.search(rf"worker {rank}  ready  pid (\d+)", log)
    assert found, log
    return int(found[1])


def until_draining(client: Client, timeout: float = 20.0) -> None:
    """Waits until new calls are refused."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            client.model_info(timeout=5.0)
        except ClientError as error:
            if error.reason == "DRAINING":
                return
    raise AssertionError("the server does not drain")


@pytest.fixture
def temp() -> Iterator[Path]:
    """A folder for all temporary files of a server; with a short name, as Ray puts sockets there."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def reachable_by_others(folder: Path) -> list[Path]:
    """What is in a folder and open to other users, also by its folders below this one."""
    found: list[Path] = []
    for path in folder.iterdir():
        if path.lstat().st_mode & 0o077:
            found.append(path)
            found += reachable_by_others(path) if path.is_dir() and not path.is_symlink() else []
    return found


def temp_env(temp: Path) -> dict[str, str]:
    return {"TMPDIR": str(temp)}


def test_ready_line_says_what_is_served(server: Server) -> None:
    assert "workers=2 " in server.ready_line
    assert "dtype=float32 " in server.ready_line
    # The cache holds whole contexts for all sequences that may run.
    assert "max_context=512 kv_tokens=32768 " in server.ready_line


def test_a_stream_equals_the_unary_answer_and_the_oracle(server: Server) -> None:
    prompt = "class TestDict(unittest.TestCase):"
    with Client(server.address) as client:
        whole = client.generate(prompt, max_tokens=24, temperature=0, return_token_ids=True)
        deltas = [
            event
            for event in client.stream(prompt, max_tokens=24, temperature=0, return_token_ids=True)
            if isinstance(event, Delta)
        ]
        prompt_ids = client.tokenize(prompt)
    assert "".join(delta.text for delta in deltas) == whole.text
    assert tuple(i for delta in deltas for i in delta.token_ids) == whole.token_ids
    model = AssembledModel.from_checkpoint(DEMO_CHECKPOINT)
    expected = model.generate(torch.tensor(prompt_ids), 24, temperature=0)[0, len(prompt_ids) :]
    assert list(whole.token_ids) == expected.tolist()


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.8, "seed": 11}])
def test_sliding_past_the_context_equals_the_oracle(server: Server, sampling: dict[str, float]) -> None:
    """The window of 512 slides from the tenth token on."""
    prompt = [2, *(4 + (7 * i) % 4000 for i in range(502))]
    with Client(server.address) as client:
        served = client.generate(
            prompt,
            max_tokens=24,
            context_overflow="slide",
            ignore_eos=True,
            return_token_ids=True,
            temperature=sampling["temperature"],
            seed=int(sampling.get("seed", 0)),
        )
    model = AssembledModel.from_checkpoint(DEMO_CHECKPOINT)
    expected = model.generate(
        torch.tensor(prompt), 24, temperature=sampling["temperature"], seed=int(sampling.get("seed", 0))
    )
    assert list(served.token_ids) == expected[0, len(prompt) :].tolist()


def test_the_client_command_streams(server: Server) -> None:
    result = run_command("client", server.address, "--prompt", "def f(", "--max-tokens", "5", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["finish_reason"] == "length"


@pytest.mark.parametrize("replicas", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_a_killed_worker_costs_no_request_and_changes_no_token(
    shared_cluster: Shared, tmp_path: Path, replicas: str
) -> None:
    """With a replica the rows go there; without one the step waits until Ray has started the worker again."""
    cluster = shared_cluster.cluster
    options = ("--replicas", replicas, "--ray-address", cluster.address)
    with Server(str(DEMO_CHECKPOINT), *options, log=tmp_path / "log", env=cluster.env) as server:
        server.wait_ready()
        with Client(server.address) as client:
            expected = client.generate(KILLED, max_tokens=60, seed=3, ignore_eos=True, return_token_ids=True)
            stream = client.stream(KILLED, max_tokens=60, seed=3, ignore_eos=True, return_token_ids=True)
            events = [next(stream), next(stream)]
            os.kill(worker_pid(server.log, rank=1), signal.SIGKILL)
            events += stream
        got = [i for event in events if isinstance(event, Delta) for i in event.token_ids]
        assert tuple(got) == expected.token_ids
        assert "worker 1 lost" in server.log, "the fault happened"


def test_bad_input_is_refused_and_the_server_lives(server: Server) -> None:
    with Client(server.address) as client:
        with pytest.raises(ClientError, match=r"prompt\.token_ids\[1\]") as refused:
            client.generate([5, 999_999])
        assert refused.value.code == "INVALID_ARGUMENT"
        assert client.generate([5, 6], max_tokens=1).usage.completion_tokens == 1


def test_a_taken_port_is_one_line(server: Server) -> None:
    result = run_command("serve", str(DEMO_CHECKPOINT), "--grpc-address", server.address)
    assert_one_line_error(result, server.address)
    assert not result.stdout


def test_sigterm_leaves_nothing(tmp_path: Path, temp: Path) -> None:
    with Server(str(DEMO_CHECKPOINT), log=tmp_path / "log", env=temp_env(temp)) as server:
        server.wait_ready()
        started = children(server.process.pid)
        assert len(started) > 4, "Ray runs as processes of its own"
        assert os.listdir(temp), "Ray has a folder of its own"
        assert reachable_by_others(temp) == []
        assert server.stop() == 0
        assert wait_gone(started) == set()
    assert os.listdir(temp) == []
    assert "Traceback" not in server.log


def test_sigterm_lets_a_running_request_finish(tmp_path: Path) -> None:
    with Server(str(DEMO_CHECKPOINT), "--workers", "0", log=tmp_path / "log") as server:
        server.wait_ready()
        with Client(server.address) as client:
            stream = client.stream([5, 6, 7], max_tokens=200, ignore_eos=True)
            next(stream)
            first = next(stream)
            server.process.send_signal(signal.SIGTERM)
            events = [first, *stream]
        assert sum(event.num_tokens for event in events if isinstance(event, Delta)) == 200
        assert server.process.wait(60) == 0


def test_a_second_sigterm_ends_a_long_request(tmp_path: Path) -> None:
    with Server(
        str(DEMO_CHECKPOINT), "--workers", "0", "--context-overflow", "slide", log=tmp_path / "log"
    ) as server:
        server.wait_ready()
        with Client(server.address) as client:
            stream = client.stream([5, 6, 7], max_tokens=4000, ignore_eos=True)
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            # Two signals that come together are one: the second must find the first heard.
            until_draining(client)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ClientError, match="UNAVAILABLE"):
                list(stream)
        assert server.process.wait(20) == 0, "well before the drain timeout"


def test_sigterm_while_loading_leaves_nothing(tmp_path: Path, temp: Path) -> None:
    with Server(str(DEMO_CHECKPOINT), log=tmp_path / "log", env=temp_env(temp)) as server:
        while not children(server.process.pid):
            assert server.process.poll() is None
        started = children(server.process.pid)
        assert server.stop() == 0
        assert wait_gone(started) == set()
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""
    assert os.listdir(temp) == []


def test_an_unreachable_ray_is_one_line() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        result = run_command(
            "serve", str(DEMO_CHECKPOINT), "--ray-address", address, "--grpc-address", "127.0.0.1:0"
        )
    assert_one_line_error(result, "Ray")
    assert not result.stdout


def test_a_checkpoint_that_is_none_is_one_line(tmp_path: Path) -> None:
    result = run_command("serve", str(tmp_path / "nothing"), "--grpc-address", "127.0.0.1:0")
    assert_one_line_error(result, "nothing")


def test_a_broken_expert_is_named_and_nothing_stays(tmp_path: Path, temp: Path) -> None:
    """A worker finds it, in its own process; the start ends with the file's name."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for source in DEMO_CHECKPOINT.rglob("*"):
        target = broken / source.relative_to(DEMO_CHECKPOINT)
        if source.is_dir():
            target.mkdir()
        else:
            target.write_bytes(source.read_bytes())
    victim = broken / "experts" / "layer_0002" / "expert_0003.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    result = run_command("serve", str(broken), "--grpc-address", "127.0.0.1:0", env=temp_env(temp))
    assert_one_line_error(result, "worker ", "layer_0002/expert_0003.safetensors")
    assert os.listdir(temp) == []
