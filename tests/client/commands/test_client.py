"""expertmesh client, as the command line runs it."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from coordinator.engine.messages.request import ContextOverflow
from expertmesh import cli
from tests.coordinator.api.background import Background, serving
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, last, tiny_tokenizer, tokens

pytestmark = BOTH_ENGINES

TEXT = tiny_tokenizer().decode([40, 41, 42])


def client(server: Background, *arguments: str) -> int:
    return cli.main(["client", server.address, *arguments])


def test_streams_text_and_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert client(server, "--prompt", "hello") == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert err.count("\n") == 1
    for part in ("3 tokens,", "tokens/s", "first token after", "finished: length"):
        assert part in err


def test_every_argument_reaches_the_engine() -> None:
    arguments = (
        "--token-ids 5,6 --max-tokens 7 --temperature 0.5 --top-k 3 --top-p 0.75 --min-p 0.25 --seed 9 "
        "--min-tokens 2 --stop-token-ids 10,11 --ignore-eos --context-overflow slide --model default"
    )
    with serving() as server:
        assert client(server, *arguments.split()) == 0
    (request,) = server.engine.requests
    assert request.prompt_ids == (5, 6)
    sampling, stop = request.sampling, request.stop
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 3, 0.75)
    assert (sampling.min_p, sampling.seed) == (0.25, 9)
    assert (stop.max_tokens, stop.min_tokens, stop.ignore_eos) == (7, 2, True)
    assert (stop.stop_token_ids, stop.context_overflow) == (frozenset({10, 11}), ContextOverflow.SLIDE)


def test_what_is_not_given_is_left_to_the_server() -> None:
    with serving() as server:
        assert client(server, "--prompt", "hello") == 0
    (request,) = server.engine.requests
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.8, 50, 0.9)
    assert not request.stop.ignore_eos


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert client(server, "--prompt", "hello", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["token_ids"], result["finish_reason"]) == (TEXT, [40, 41, 42], "length")
    assert result["usage"]["completion_tokens"] == 3
    assert result["timings"]["total_time"] == 1.5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--prompt", ""], "INVALID_ARGUMENT: prompt.text: 0 bytes"),
        (["--token-ids", ""], "INVALID_ARGUMENT: prompt.token_ids: 0 ids"),
        (["--token-ids", "1,999"], "INVALID_ARGUMENT: prompt.token_ids[1]: 999"),
        (["--prompt", "x", "--top-p", "nan"], "INVALID_ARGUMENT: sampling.top_p: nan"),
        (["--prompt", "x", "--max-tokens", "-1"], "INVALID_ARGUMENT: stopping.max_tokens: '-1'"),
        (["--prompt", "x", "--model", "no", "--json"], "NOT_FOUND: model"),
    ],
)
def test_errors_are_one_line(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert client(server, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"expertmesh client: error: {error}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--prompt", "x", "--token-ids", "1"],
        ["--token-ids", "1,,2"],
        ["--token-ids", "a"],
        ["--prompt", "x", "--timeout", "0"],
        ["--prompt", "x", "--timeout", "soon"],
        ["--prompt", "x", "--context-overflow", "wrap"],
    ],
)
def test_misuse_is_told_before_anything_is_sent(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["client", "127.0.0.1:1", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_timeout_ends_the_line_first(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeEngine(tokens(40), asyncio.Event())) as server:
        assert client(server, "--prompt", "x", "--timeout", "1.5") == 1
    out, err = capsys.readouterr()
    assert out == tiny_tokenizer().decode([40]) + "\n"
    assert err.startswith("expertmesh client: error: DEADLINE_EXCEEDED: ")


def test_ctrl_c_ends_cleanly() -> None:
    with serving(FakeEngine(tokens(40), asyncio.Event(), last(41))) as server:
        command = [sys.executable, "-m", "expertmesh.cli", "client", server.address, "--prompt", "x"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == tiny_tokenizer().decode([40]).encode()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 130
        assert b"Traceback" not in err
        server.wait_for(server.engine.abort_seen)
