"""What a process and its children are, and what they use together."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks import process_tree
from tests.sources import ROOT

MODULE = "tests.benchmarks.waiting"
# Has a child, whose id it says when both have nothing left to do; both end with their input.
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "{MODULE}"], stdin=-1, stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())
        parent.communicate()


def test_a_process_and_what_it_has_started(family: tuple[int, int]) -> None:
    assert [each.pid for each in process_tree.tree(family[0])] == list(family)
    assert set(family) < {each.pid for each in process_tree.tree(os.getpid())}


def test_a_process_is_known_by_its_module(family: tuple[int, int]) -> None:
    parent, child = process_tree.tree(family[0])
    assert (parent.runs(MODULE), child.runs(MODULE), child.runs("tests")) == (False, True, False)


def test_what_they_use_is_the_sum(family: tuple[int, int]) -> None:
    parent, child = ([pid] for pid in family)
    both, one, other = map(process_tree.memory, (family, parent, child))
    assert both.rss == one.rss + other.rss
    # Shared pages count once for both together, so pss is below rss.
    assert 0 < both.pss < both.rss
    for of in (process_tree.peak_rss, process_tree.num_fds, process_tree.cpu_seconds):
        assert of(family) == of(parent) + of(child) > 0


def test_who_has_ended_counts_for_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        # Nobody has waited for it yet: it is still listed, and uses nothing.
        assert process_tree.tree(ended.pid) == []
    assert process_tree.tree(ended.pid) == []
    assert process_tree.memory([ended.pid]) == process_tree.Memory(0, 0)
    assert process_tree.num_fds([ended.pid]) == process_tree.peak_rss([ended.pid]) == 0
    assert process_tree.cpu_seconds([ended.pid]) == 0.0
