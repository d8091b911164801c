"""The entry point: Ctrl-C while it loads what a command needs ends the process, with nothing said.

The signal comes at an import, and not after a time.
"""

import subprocess
import sys

import pytest

from tests.integration.processes import DEMO_CHECKPOINT

INTERRUPTED = """
import importlib, os, runpy, signal, sys
at, how, *arguments = sys.argv[1:]
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name not in ("expertmesh", "expertmesh.cli") and at in ("the first", name):
            os.kill(os.getpid(), signal.SIGINT)
            # For as long as the test waits, where a thread takes it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            signal.sigwait({signal.SIGUSR1})
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = arguments
if how == "module":
    runpy.run_module("expertmesh.cli", run_name="__main__", alter_sys=True)
else:
    from expertmesh.cli import main
    sys.exit(main())
"""
CLIENT, SERVE = (
    ("client", "h:1", "--prompt", "x"),
    ("serve", str(DEMO_CHECKPOINT), "--workers", "0", "--log-level", "error"),
)
# `serve` itself loads no torch.
GENERATE = ("generate", str(DEMO_CHECKPOINT), "--prompt", "x")


def interrupted(at: str, how: str, *arguments: str) -> tuple[int, str]:
    """The exit code as a shell has it, and what was said on both streams."""
    command = [sys.executable, "-c", INTERRUPTED, at, how, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    return (128 - done.returncode if done.returncode < 0 else done.returncode), done.stdout


@pytest.mark.parametrize("how", ["module", "script"])
@pytest.mark.parametrize(
    ("arguments", "at"),
    [
        ((), "the first"),
        (("--version",), "importlib.metadata"),
        (CLIENT, "the first"),
        (CLIENT, "argparse"),
        (CLIENT, "expertmesh.commands.parser"),
        (CLIENT, "expertmesh.commands.client_arguments"),
        (CLIENT, "expertmesh.commands.client"),
        (CLIENT, "grpc"),
        (SERVE, "the first"),
        (SERVE, "coordinator.server.stop_signals"),
        (SERVE, "coordinator.commands.serve_arguments"),
        (SERVE, "coordinator.commands.serve"),
        (SERVE, "coordinator.server.launcher.launch"),
        (GENERATE, "torch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ctrl_c_while_it_loads_ends_it_with_nothing_said(
    arguments: tuple[str, ...], at: str, how: str
) -> None:
    assert interrupted(at, how, *arguments) == (130, "")
