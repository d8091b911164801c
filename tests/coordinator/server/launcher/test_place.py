"""Real processes in one place after the other: what each death is, and what comes after it."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coordinator.config.serve import ServeConfig
from coordinator.server.launcher.deaths import RestartPolicy
from coordinator.server.launcher.messages import Begin, Drain, Drained, FrontReady, Message
from coordinator.server.launcher.place import Place
from tests.sources import ROOT

PATIENCE = 60.0
MODULE = "tests.coordinator.server.launcher.a_process"


@dataclass
class Watched:
    """A place, what its processes have said, and why there is none any more."""

    folder: Path
    what: str
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    said: list[Message] = field(default_factory=list)
    greeted: list[bool] = field(default_factory=list)
    num_deaths: int = 0

    def __post_init__(self) -> None:
        self.changed = asyncio.Event()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.place = Place(
            *("front", MODULE, self.folder, self._greet, self._hear, self._died),
            arguments=(self.what,),
            policy=self.policy,
        )

    @property
    def pids(self) -> list[int]:
        """Of the processes that have served."""
        return [said.max_context for said in self.said if isinstance(said, FrontReady)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def why(self) -> str:
        return await asyncio.wait_for(asyncio.shield(self.lost), PATIENCE)

    def _greet(self, is_again: bool) -> list[Message]:
        self.greeted.append(is_again)
        return [Begin(ServeConfig("checkpoint"), self.folder, is_again=is_again)]

    def _hear(self, message: Message) -> None:
        self.said.append(message)
        if isinstance(message, FrontReady):
            self.place.serves()
        self.changed.set()

    def _died(self) -> None:
        self.num_deaths += 1
        self.changed.set()


@pytest.fixture(autouse=True)
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@asynccontextmanager
async def kept(folder: Path, what: str, policy: RestartPolicy | None = None) -> AsyncIterator[Watched]:
    watched = Watched(folder, what, policy or RestartPolicy(first_wait=0.01))
    watched.place.begin(watched.lost.set_result)
    try:
        yield watched
    finally:
        await watched.place.end(PATIENCE)
        assert watched.place.child is None


async def test_one_that_is_killed_is_followed_by_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(tmp_path, "serve") as watched:
        await watched.until(lambda: len(watched.pids) == 1)
        os.kill(watched.pids[0], signal.SIGKILL)
        await watched.until(lambda: len(watched.pids) == 2)
        assert watched.greeted == [False, True]
        assert watched.num_deaths == 1
        assert f"the front (pid {watched.pids[0]}) has died: SIGKILL; it is started again" in caplog.text
    assert not watched.lost.done()


async def test_it_hears_and_answers_and_ends_when_told(tmp_path: Path) -> None:
    async with kept(tmp_path, "say-goodbye") as watched:
        await watched.until(lambda: bool(watched.pids))
        watched.place.tell(Drain(0.0, 1.0))
        await watched.until(lambda: Drained() in watched.said)
    assert (tmp_path / "goodbye").exists(), "it ended in order"
    assert tmp_path.exists(), "the folder is the launcher's"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("segfault", "SIGSEGV, Segmentation fault, in role (a_process.py:"),
        ("raise", "exit code 1, ValueError: not foreseen"),
        ("exit", "exit code 3"),
        ("return", "it has ended by itself"),
    ],
)
async def test_a_crash_loop_ends_and_says_why(tmp_path: Path, what: str, words: str) -> None:
    async with kept(tmp_path, what, RestartPolicy(most=3, first_wait=0.01)) as watched:
        why = await watched.why()
    assert f"has died: {words}" in why
    assert why.endswith("; 3 times in 60 s are too often")
    assert (len(watched.pids), watched.num_deaths) == (3, 3)


async def test_what_refuses_to_start_is_not_started_again(tmp_path: Path) -> None:
    async with kept(tmp_path, "refuse") as watched:
        assert await watched.why() == "--fronts: not today"
    assert watched.greeted == [False]


async def test_what_dies_while_it_starts_is_not_started_again(tmp_path: Path) -> None:
    async with kept(tmp_path, "crash-at-once") as watched:
        why = await watched.why()
    assert why.endswith("has died: exit code 7, while it started")
    assert watched.greeted == [False]


async def test_one_that_hangs_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(tmp_path, "hang") as watched:
        await watched.until(lambda: bool(watched.pids))
        await watched.place.end(0.2)
    assert "does not end: it is killed" in caplog.text


async def test_one_that_loads_its_libraries_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(tmp_path, "serve") as watched:
        await watched.until(lambda: True)
    assert watched.said == []
    assert "does not end" not in caplog.text


async def test_one_that_waits_for_its_next_start_is_not_started_after_the_end(tmp_path: Path) -> None:
    async with kept(tmp_path, "serve", RestartPolicy(first_wait=PATIENCE)) as watched:
        for number in (1, 2):
            await watched.until(lambda number=number: len(watched.pids) == number)  # type: ignore[misc]
            os.kill(watched.pids[-1], signal.SIGKILL)
            await watched.until(lambda number=number: watched.num_deaths == number)  # type: ignore[misc]
    assert len(watched.greeted) == 2


def test_a_process_ends_with_its_launcher(tmp_path: Path) -> None:
    """However that ends: nothing is left, not even the folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.coordinator.server.launcher.test_place import Watched\n"
        "async def main():\n"
        "    watched = Watched(Path(sys.argv[1]), 'leave-file')\n"
        "    watched.place.begin(watched.lost.set_result)\n"
        "    await watched.until(lambda: bool(watched.pids))\n"
        "    print(watched.pids[0], flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, cwd=ROOT)
    assert launcher.stdout is not None
    with launcher, launcher.stdout:
        pid = int(launcher.stdout.readline())
        descriptor = os.pidfd_open(pid)
        launcher.kill()
        launcher.wait(PATIENCE)
    with os.fdopen(descriptor) as gone:
        assert select.select([gone], [], [], PATIENCE)[0], "it outlives its launcher"
    assert not folder.exists()
