"""Hosts of at most one core have one processor, all their threads."""

import os
import subprocess
import sys
import threading

import pytest

from scaling.hosts.cpus import pin, shared_out

TWO = frozenset({0, 1})


def test_each_small_host_has_the_processor_with_the_least_on_it() -> None:
    assert shared_out([0.15, 0.3, 0.6], TWO) == [frozenset({1}), frozenset({1}), frozenset({0})]
    assert shared_out([1.0, 0.5], {5, 3}) == [frozenset({3}), frozenset({5})]


def test_a_host_of_more_than_a_core_may_use_all() -> None:
    assert shared_out([None, 1.5, 0.5], TWO) == [TWO, TWO, frozenset({0})]
    assert shared_out([], TWO) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_all_threads_of_a_process_are_moved_and_what_it_starts() -> None:
    code = (
        "import subprocess, sys, threading\n"
        "threading.Thread(target=sys.stdin.readline).start()\n"
        "print('there', flush=True)\n"
        "sys.stdin.readline()\n"
        "subprocess.run([sys.executable, '-c', 'import os; print(os.sched_getaffinity(0))'])\n"
    )
    cpu = max(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        pin(lambda: {process.pid}, frozenset({cpu}))
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
        assert len(threads) == 2
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({cpu})}
        assert process.communicate("go\ngo\n", timeout=60)[0] == f"{{{cpu}}}\n"


def test_a_process_that_has_ended_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    pin(lambda: {process.pid}, frozenset(os.sched_getaffinity(threading.get_native_id())))
