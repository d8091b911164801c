"""A guard ends its command, and all that this has started, when nothing is left that could tell it so."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.server_process import ROOT, environment_of
from expert_workers.processes import Process, descendants, wait_gone
from scaling.sweep.guard import guarded

# It starts a process that leaves its parent and its terminal, says so, and waits.
DEEP = """
import os, subprocess, sys
inner = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('deep', flush=True); signal.pause()"
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, '-c', inner], start_new_session=True)
    os._exit(0)
subprocess.run([sys.executable, '-c', SOURCE, 'again'])
import signal
signal.pause()
"""
_TIMEOUT = 60.0


def command() -> list[str]:
    source = f"SOURCE = {DEEP!r}\n{DEEP}"
    return [sys.executable, "-c", source]


@pytest.fixture
def guard() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        guarded(command()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_of(ROOT),
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def started(guard: "subprocess.Popen[bytes]") -> frozenset[Process]:
    """All below it, when the deepest has said that it runs."""
    assert guard.stdout is not None
    assert guard.stdout.readline() == b"deep\n"
    found = descendants(guard.pid)
    assert len(found) == 2
    return found


def test_all_end_with_the_parent(guard: "subprocess.Popen[bytes]") -> None:
    found = started(guard)
    assert guard.stdin is not None
    guard.stdin.close()
    assert guard.wait(_TIMEOUT) == 128 + signal.SIGTERM
    assert wait_gone(found, 0.0) == frozenset()


def test_all_end_with_the_command(guard: "subprocess.Popen[bytes]") -> None:
    found = started(guard)
    os.kill(min(each.pid for each in found), signal.SIGKILL)
    assert guard.wait(_TIMEOUT) == 128 + signal.SIGKILL
    assert wait_gone(found, 0.0) == frozenset()


def test_the_exit_code_and_the_output_are_the_command_s() -> None:
    with subprocess.Popen(
        guarded([sys.executable, "-c", "print('said'); raise SystemExit(7)"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment_of(ROOT),
        cwd=ROOT,
    ) as process:
        assert process.wait(_TIMEOUT) == 7
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == (b"said\n", b"")
