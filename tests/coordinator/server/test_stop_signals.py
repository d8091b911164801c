"""No handler gets the signals, whoever installs one later; and afterwards the process is as before."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest

from coordinator.commands.termination import stop_exits
from coordinator.server.stop_signals import signals_heard_by, signals_taken
from moe_model.errors import HaltedError

BEGIN = """
import os, signal, sys, threading
from queue import Queue
from coordinator.server.stop_signals import signals_heard_by, signals_taken
number = signal.Signals(int(sys.argv[1]))
heard = Queue()
with signals_taken(for_good=True):
    # As Ray's library does while it starts.
    signal.signal(number, lambda *_: os._exit(99))
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
STOPS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


def run(
    script: str, number: signal.Signals, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", BEGIN + script, str(int(number))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@STOPS
def test_the_one_who_asks_hears_them_and_no_handler_does(number: signal.Signals) -> None:
    done = run(
        "    with signals_heard_by(heard.put):\n"
        "        for _ in range(2):\n"
        "            os.kill(os.getpid(), number)\n"
        "            print(heard.get(timeout=30).name)\n",
        number,
    )
    assert (done.returncode, done.stdout.split()) == (0, [number.name] * 2), done.stderr


@STOPS
def test_the_process_ends_at_once_where_nobody_asks(number: signal.Signals) -> None:
    """Before anything was started, and when all has ended."""
    wait = "threading.Event().wait(30)\n"
    before = run(f"    os.kill(os.getpid(), number)\n    {wait}", number)
    after = run(f"    with signals_heard_by(heard.put): pass\nos.kill(os.getpid(), number)\n{wait}", number)
    for done in (before, after):
        assert (done.returncode, done.stderr) == (128 + number, "")


def test_a_command_under_nohup_outlives_its_terminal() -> None:
    script = (
        "    signal.signal(number, signal.SIG_IGN)\n    os.kill(os.getpid(), number)\n    print('lives')\n"
    )
    done = run(script, signal.SIGHUP, ("nohup",))
    assert (done.returncode, done.stdout) == (0, "lives\n"), done.stderr


def test_the_signals_are_given_back() -> None:
    before, threads = signal.pthread_sigmask(signal.SIG_BLOCK, []), threading.active_count()
    with signals_taken(for_good=False), signals_heard_by(lambda _: None):
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert threading.active_count() == threads


def halted() -> None:
    with signals_taken(for_good=False), stop_exits() as halt:
        # To that thread, for a process of tests has others, which do not block it.
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "stop-signals"]
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        halt.result(Future[None](), 30.0)


def test_what_is_halted_by_a_signal_exits_with_its_number() -> None:
    with pytest.raises(SystemExit) as raised:
        halted()
    assert raised.value.code == 143


def test_what_is_halted_for_another_reason_is_an_error() -> None:
    with pytest.raises(HaltedError), signals_taken(for_good=False), stop_exits():
        raise HaltedError("the head is gone")
