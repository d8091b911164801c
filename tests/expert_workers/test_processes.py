import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from expert_workers.processes import Process, descendants, is_running, kill_and_wait, wait_gone

# A shell's sleep is its child, as the trailing command keeps the shell from becoming it.
TREE = ["sh", "-c", "sleep 60; true"]


@pytest.fixture
def tree() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(TREE) as process:
        yield process
        process.kill()


def wait_for_tree(process: "subprocess.Popen[bytes]") -> frozenset[Process]:
    while len(found := descendants(os.getpid(), "sh")) < 2:
        assert process.poll() is None
    return found


def test_descendants_are_found_through_the_named_child_only(tree: "subprocess.Popen[bytes]") -> None:
    found = wait_for_tree(tree)
    assert tree.pid in {process.pid for process in found}
    assert len(found) == 2
    assert descendants(os.getpid(), "no such name") == frozenset()
    kill_and_wait(found, 5.0)


def test_what_is_killed_is_gone(tree: "subprocess.Popen[bytes]") -> None:
    found = wait_for_tree(tree)
    assert wait_gone(found, 0.0) == found
    assert kill_and_wait(found, 5.0) == frozenset()
    assert not any(is_running(process) for process in found)


def test_another_process_with_the_same_pid_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert kill_and_wait(frozenset({Process(child.pid, started=1)}), 0.0) == frozenset()
        assert child.poll() is None
        child.communicate(b"\n")
    assert child.returncode == 0
