import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expertmesh.commands.signals import sigterm_exits

COMMAND = """
import argparse, sys
from coordinator.commands import init_arguments, init_checkpoint
parser = argparse.ArgumentParser()
init_arguments.add_arguments(parser)
init_checkpoint.run(parser.parse_args(sys.argv[1:]))
"""


def interrupted(number: signal.Signals) -> None:
    with sigterm_exits(also=(signal.SIGHUP,)):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_exit_while_it_lasts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as raised:
        interrupted(number)
    assert raised.value.code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "sizes.json").write_text('{"d_model": 8, "d_ff": 8, "n_layers": 1000, "n_experts": 100}')
    out = tmp_path / "out"
    out.mkdir()
    args = [str(out / "new"), "--config", str(tmp_path / "sizes.json")]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *args], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob(".new.partial-*/experts/*/*")):
            assert process.poll() is None, "ended before anything was written"
            assert time.monotonic() < deadline, "nothing was written"
        process.send_signal(number)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert os.listdir(out) == []
