"""expertmesh top: what it shows at 80 columns, to programs, without a terminal, and how it ends."""

import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from expertmesh.commands.keyboard import Keyboard
from expertmesh.commands.top_view import Look, as_json, layers_text, machine, ranges, render
from expertmesh.v1 import control_pb2 as pb
from tests.integration.processes import COMMAND, DEMO_CHECKPOINT, Server, run_command

NUM_LAYERS = 12


def worker(rank: int, experts: dict[int, list[int]], **fields: object) -> pb.ExpertWorker:
    given: dict[str, object] = {
        "rank": rank,
        "node_id": "373ed4e4523f" * 4,
        "device": "cpu",
        "state": pb.ExpertWorker.STATE_READY,
        "routed_tokens": 987_654_321,
        "host": f"10.20.30.{100 + rank}",
        "hostname": f"gpu-node-{rank:02}.cluster.internal",
        "layers": [pb.ExpertWorker.LayerExperts(layer=n, expert_ids=ids) for n, ids in experts.items()],
    }
    return pb.ExpertWorker(**{**given, **fields})  # type: ignore[arg-type]


def look(*workers: pb.ExpertWorker, at: float = 1.0, models: tuple[str, ...] = ("demo",)) -> Look:
    info = pb.GetServerInfoResponse(version="0.1.0", models=models)
    return Look(at, info, pb.GetLoadResponse(running_requests=3, kv_cache_capacity_tokens=1 << 20), workers)


def shown(now: Look, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(render(now, None, width))
    return file.getvalue().splitlines()


def ten_workers() -> list[pb.ExpertWorker]:
    """64 experts in each of 12 layers, twice: as blocks, as blocks that move, and all over."""
    found = []
    for rank in range(10):
        if rank < 4:
            experts = {n: [i for i in range(64) if i // 7 == rank] for n in range(NUM_LAYERS)}
        elif rank < 7:
            experts = {n: [i for i in range(64) if (i + n // 4) // 13 == rank - 4] for n in range(NUM_LAYERS)}
        else:
            experts = {n: [i for i in range(64) if (i * 7 + n) % 10 == rank] for n in range(NUM_LAYERS)}
        found.append(worker(rank, experts))
    return found


@pytest.mark.parametrize("width", [80, 60, 40])
def test_ten_workers_of_64_experts_fit(width: int) -> None:
    now = look(
        *ten_workers(), models=("a-model-with-a-name-that-is-long", "and-an-alias-that-is-long-as-well")
    )
    lines = shown(now, width)
    assert max(map(len, lines)) <= width
    # A head of four, a line for each worker, its experts in at most three, and two of names.
    assert len(lines) <= 4 + 1 + 10 + 1 + 3 * 10


def test_at_80_columns_nothing_that_matters_is_cut() -> None:
    text = "\n".join(line.rstrip() for line in shown(look(*ten_workers())))
    for rank in range(10):
        line = rf"^ +{rank}  ready  cpu +987,654,321 +0  gpu-node-{rank:02} 10\.20\.30\.{100 + rank}$"
        assert re.search(line, text, re.MULTILINE), text
    assert "every layer: 7-13" in text
    assert "0-3: 0-12  4-7: 0-11  8-11: 0-10" in text
    assert "373ed4e4523f" not in text


def test_a_machine_is_named_and_has_its_address() -> None:
    assert machine(worker(0, {}, hostname="box.lan", host="10.0.0.4"), 30) == "box.lan 10.0.0.4"
    assert machine(worker(0, {}, hostname="box.lan", host="10.0.0.4"), 14) == "box 10.0.0.4"
    assert machine(worker(0, {}, hostname="", host="10.0.0.4"), 30) == "10.0.0.4"
    assert machine(worker(0, {}, hostname="", host=""), 30) == "-"


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([3, 1, 2], "1-3"), ([0, 1, 5, 7, 8, 9], "0-1,5,7-9")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_layers_that_hold_the_same_are_one() -> None:
    assert layers_text(worker(0, {})) == "-"
    assert layers_text(worker(0, {0: [1, 2], 1: [1, 2]})) == "every layer: 1-2"
    assert layers_text(worker(0, {0: [1], 1: [2, 3], 2: [1]})) == "0,2: 1  1: 2-3"


@pytest.mark.parametrize("state", [value for name, value in pb.ExpertWorker.State.items() if value])
def test_every_state_has_its_word(state: pb.ExpertWorker.State) -> None:
    assert not any("unknown" in line for line in shown(look(worker(0, {}, state=state))))


def test_what_is_missing_is_shown() -> None:
    missing = [pb.ExpertWorker.LayerExperts(layer=1, expert_ids=[4, 5])]
    assert any("missing: 2" in line for line in shown(look(worker(0, {0: [1]}, missing=missing))))


def test_json_has_everything() -> None:
    before, now = (
        look(worker(3, {0: [1, 4]}, routed_tokens=10)),
        look(worker(3, {0: [1, 4]}, routed_tokens=30), at=3.0),
    )
    found = json.loads(json.dumps(as_json(now, before)))
    assert found["models"] == ["demo"]
    assert found["tokens_per_second"] == 10.0
    (one,) = found["workers"]
    assert (one["rank"], one["state"], one["experts"]) == (3, "ready", {"0": [1, 4]})
    assert (one["hostname"], one["host"]) == ("gpu-node-03.cluster.internal", "10.20.30.103")


def test_without_a_terminal_no_key_comes() -> None:
    with Keyboard(io.StringIO("q")) as keyboard:
        assert not keyboard.wait(0.001, "q")


def test_a_key_ends_the_wait_and_the_terminal_is_as_before() -> None:
    ours, theirs = pty.openpty()
    code = (
        "import os, sys, termios\n"
        "from expertmesh.commands.keyboard import Keyboard\n"
        "before = termios.tcgetattr(0)\n"
        "with Keyboard(sys.stdin) as keyboard:\n"
        "    print('listening', flush=True)\n"
        "    heard = keyboard.wait(60, 'q')\n"
        "print(heard, termios.tcgetattr(0) == before, flush=True)\n"
    )
    # In a session whose terminal this is, as a shell's command is.
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", COMMAND[0], "-c", code],
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        os.write(ours, b"xq")
        assert process.stdout.readline() == "True True\n"
    os.close(ours)


def test_against_a_server(tmp_path: Path) -> None:
    arguments = [str(DEMO_CHECKPOINT), "--workers", "1", "--transport", "in-process"]
    with Server(*arguments, log=tmp_path / "log") as server:
        server.wait_ready()
        address = server.address_of("control")
        plain = run_command("top", address, "--count", "2", "--interval", "0.01")
        assert plain.returncode == 0, plain.stderr
        # One look below the other, and nothing that moves a cursor.
        assert plain.stdout.count("sequences") == 2
        assert "\x1b" not in plain.stdout
        assert os.uname().nodename[:12] in plain.stdout
        once = run_command("top", address, "--once", "--json")
        assert len(once.stdout.splitlines()) == 1
        assert json.loads(once.stdout)["workers"][0]["state"] == "ready"
        # An operator's look is no event; what fails is.
        assert not re.search("GetServerInfo|GetLoad|GetTopology", server.log)


def test_once_and_count_exclude_each_other() -> None:
    result = run_command("top", "127.0.0.1:1", "--once", "--count", "2")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
