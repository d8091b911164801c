"""A process with limits: what becomes of questions that are too much, and of the process with its owner."""

import gc
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.confined import process as module
from coordinator.confined.errors import CrashedError, OutOfTimeError
from coordinator.confined.process import ConfinedProcess
from moe_model.errors import NoProcessError
from tests.coordinator.confined.children import children

ODD = "tests.coordinator.confined.odd_child"
SECONDS = 60.0


@pytest.fixture
def odd() -> Iterator[ConfinedProcess]:
    with closing(ConfinedProcess(ODD, b"first")) as process:
        yield process


def test_it_answers(odd: ConfinedProcess) -> None:
    before = children()
    for question in (b"", b"one", b"x" * (1 << 20)):
        assert odd.ask(question, SECONDS) == question
    assert len(children() - before) == 1


def test_time_on_a_processor_is_bounded(odd: ConfinedProcess) -> None:
    with pytest.raises(OutOfTimeError):
        odd.ask(b"spin", SECONDS)
    assert odd.ask(b"again", SECONDS) == b"again"


def test_time_by_the_clock_is_bounded(odd: ConfinedProcess) -> None:
    before = children()
    odd.ask(b"hello", SECONDS)
    (pid,) = children() - before
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(OutOfTimeError):
        odd.ask(b"hello", 0.05)
    assert children() <= before
    assert odd.ask(b"again", SECONDS) == b"again"


def test_time_before_a_question_does_not_count(odd: ConfinedProcess) -> None:
    """Each question has its own."""
    for _ in range(5):
        assert odd.ask(b"eat 20", SECONDS) == b"%d" % (20 << 20)


def test_memory_is_bounded(odd: ConfinedProcess) -> None:
    with pytest.raises(CrashedError):
        odd.ask(b"eat 128", SECONDS)


def test_a_crash_is_told(odd: ConfinedProcess) -> None:
    with pytest.raises(CrashedError):
        odd.ask(b"crash", SECONDS)
    assert odd.ask(b"again", SECONDS) == b"again"


def test_no_reply_fills_the_owners_memory(odd: ConfinedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REPLY", 1 << 20)
    assert len(odd.ask(b"reply 1", SECONDS)) == 1 << 20
    with pytest.raises(CrashedError):
        odd.ask(b"reply 2", SECONDS)


def test_it_knows_nothing_of_the_environment(odd: ConfinedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTMESH_API_KEY", "a secret")
    told = odd.ask(b"environment", SECONDS)
    assert told.startswith(b"PYTHONPATH=")
    assert len(told.split()) == 1


def test_it_writes_no_file(odd: ConfinedProcess, tmp_path: Path) -> None:
    with pytest.raises(CrashedError):
        odd.ask(b"write " + os.fsencode(tmp_path / "file"), SECONDS)
    assert not (tmp_path / "file").read_bytes()


def test_a_module_that_does_not_start_is_told() -> None:
    process = ConfinedProcess("tests.coordinator.confined.no_such_module", b"")
    with pytest.raises(NoProcessError, match="no_such_module: its process does not start"):
        process.ask(b"", SECONDS)


def test_an_interpreter_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NoProcessError, match="cannot start a process"):
        ConfinedProcess(ODD, b"").ask(b"", SECONDS)


def test_it_ends_with_its_owner() -> None:
    before = children()
    process = ConfinedProcess(ODD, b"")
    process.ask(b"", SECONDS)
    del process
    gc.collect()
    assert children() <= before


@pytest.mark.parametrize("question", ["hello", "spin"])
def test_it_ends_with_an_owner_that_is_killed(question: str) -> None:
    command = [sys.executable, "-m", "tests.coordinator.confined.owner", ODD, question]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        handle = os.pidfd_open(pid)
        owner.kill()
    # Readable once it has ended.
    ends = select.poll()
    ends.register(handle, select.POLLIN)
    assert ends.poll(60_000)
    os.close(handle)
