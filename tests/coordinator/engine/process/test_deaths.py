"""Real processes that are killed: each side hears of the other's death at once, and what it left is freed."""

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import CheckIntegrity, Done
from coordinator.engine.messages.errors import EngineLostError
from coordinator.engine.messages.output import FinishReason
from coordinator.engine.process.client import ProcessEngine
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.coordinator.engine.process.linked import PATIENCE, read, serving, until
from tests.models import make_request
from tests.sources import ROOT

MAINS = "tests.coordinator.engine.process"


class Processes(ExitStack):
    """Those that a test starts; none is left behind."""

    def start(self, module: str, *arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", f"{MAINS}.{module}", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.callback(self._end, process)
        return process

    def _end(self, process: "subprocess.Popen[str]") -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def begin(engine: "subprocess.Popen[str]") -> None:
    """It was started before, to be quick."""
    assert engine.stdin is not None
    engine.stdin.write("\n")
    engine.stdin.flush()


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as processes:
        yield processes


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        yield Path(folder) / "engine"


async def test_an_engine_that_is_killed_ends_all_streams_and_the_next_is_found(
    processes: Processes, path: Path
) -> None:
    """The next listens at the same path, where the dead one's socket still lies."""
    first, second = (processes.start("engine_main", path) for _ in range(2))
    begin(first)
    front = await ProcessEngine.connect(path, PATIENCE)
    streams = [front.stream(make_request(f"r{n}", max_tokens=1 << 19)) for n in range(16)]
    for stream in streams:
        await anext(stream)
    first.kill()
    async with asyncio.timeout(PATIENCE):
        for stream in streams:
            with pytest.raises(EngineLostError):
                async for _ in stream:
                    pass
    assert front.stats().lost
    assert front.request_ids == []
    with pytest.raises(EngineLostError):
        await asyncio.to_thread(front.call, CheckIntegrity())
    assert path.is_socket()
    # Its connections may be closed before its listener is: what starts the next one waits for its end.
    await asyncio.to_thread(first.wait)
    begin(second)
    await until(lambda: not front.stats().lost)
    outputs = await read(front, make_request("r0", (1, 2, 3), 4))
    assert [token for output in outputs for token in output.token_ids] == [3, 4, 5, 6]
    assert await asyncio.to_thread(front.call, CheckIntegrity()) == Done()
    assert await front.close()


async def test_a_front_that_hangs_and_is_killed_costs_no_other_front_anything(
    processes: Processes, path: Path
) -> None:
    """While it is stopped it reads nothing; when it dies, its requests are gone from the engine."""
    core = engine_over(CountingRunner(), max_seq_len=1 << 20, num_blocks=1 << 12, block_size=256)
    async with serving(EngineThread(core), path=path):
        other = await ProcessEngine.connect(path, PATIENCE)
        process = processes.start("front_main", path, 7)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "open\n"
        process.send_signal(signal.SIGSTOP)
        # The stopped one's requests compute on; what they say is kept.
        outputs = await read(other, make_request("a", (1, 2, 3), 2000))
        assert [token for output in outputs for token in output.token_ids] == list(range(3, 2003))
        assert other.stats().num_running == 7
        process.kill()
        await until(lambda: other.stats().num_running == 0)
        stats = other.stats()
        assert (stats.num_waiting, stats.num_free_blocks) == (0, stats.num_blocks)
        assert await asyncio.to_thread(other.call, CheckIntegrity()) == Done()
        assert (await read(other, make_request("b")))[-1].finish_reason is FinishReason.LENGTH
        assert await other.close()


def test_the_main_of_a_front_is_light() -> None:
    """What a front needs of the link needs no model."""
    program = f"import sys, {MAINS}.front_main\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
