"""What a line says of a death, and how soon the next may start."""

import faulthandler
import subprocess
import sys
import tempfile

import pytest

from coordinator.server.launcher.deaths import RestartPolicy, why_it_ended


@pytest.mark.parametrize(
    ("code", "last_words", "num_oom_kills", "expected"),
    [
        (-9, "", 0, "SIGKILL"),
        (-9, "", 1, "SIGKILL, by the kernel for want of memory"),
        (-15, "", 1, "SIGTERM"),
        (3, "", 1, "exit code 3"),
        (1, "Traceback\n\nValueError: no such thing\n", 0, "exit code 1, ValueError: no such thing"),
        (-250, "", 0, "signal 250"),
        (1, "x" * 1000, 0, "exit code 1, " + "x" * 300),
    ],
)
def test_it_says_how_and_why(code: int, last_words: str, num_oom_kills: int, expected: str) -> None:
    assert why_it_ended(code, last_words, num_oom_kills) == expected


def test_a_crash_is_said_with_its_place() -> None:
    """By what the interpreter itself writes when it crashes."""
    program = "import faulthandler, sys\ndef innermost():\n    faulthandler._sigsegv()\n"
    program += "faulthandler.enable(sys.stdout)\ninnermost()\n"
    assert hasattr(faulthandler, "_sigsegv")
    with tempfile.TemporaryFile() as words:
        code = subprocess.run([sys.executable, "-c", program], stdout=words, check=False).returncode
        words.seek(0)
        said = why_it_ended(code, words.read().decode())
    assert said == "SIGSEGV, Segmentation fault, in innermost (<string>:3)"


def test_waits_grow_and_a_crash_loop_ends() -> None:
    policy = RestartPolicy()
    assert [policy.died(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [0.0, 0.5, 1.0, 2.0, None]


def test_deaths_of_long_ago_do_not_count() -> None:
    policy = RestartPolicy()
    assert [policy.died(now) for now in (0.0, 30.0, 61.0, 92.0, 200.0)] == [0.0, 0.5, 0.5, 0.5, 0.0]
