"""How a command starts that starts Ray: each phase is told, and signals are taken by a thread of ours."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from coordinator.commands.start_report import Say, StartReport
from coordinator.server.stop_signals import signals_taken


class Tells(Protocol):
    """What the module of such a command's arguments provides."""

    def say_with(self, args: argparse.Namespace) -> Say | None:
        """How the start is told, from before anything heavy is loaded; None for not at all."""


@contextmanager
def told(arguments: Tells, args: argparse.Namespace) -> Iterator[None]:
    """Around loading and running a command; `args.report` takes the phases."""
    with StartReport(sys.stderr) as report:
        args.report = report
        if say := arguments.say_with(args):
            report.say_with(say)
        report("libraries")
        yield


def with_signals(work: Callable[[], int], *, for_good: bool) -> int:
    """The exit code of `work`. Call it before the first import that starts a thread.

    `for_good`: the process ends with it; at once where `work` has failed, as threads of Ray may wait for ever
    for a head that is gone, and must not meet the interpreter's end.
    """
    with signals_taken(for_good=for_good):
        code = work()
    if code and for_good:
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    return code
