"""expertmesh top: load, workers, experts and rates of a running server, live."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from rich.console import Console, RenderableType
from rich.live import Live

from expertmesh.commands.connection import connection
from expertmesh.commands.keyboard import Keyboard
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from expertmesh.commands.top_arguments import TopArguments
from expertmesh.commands.top_view import Look, as_json, problem, render
from expertmesh.control import ControlClient
from expertmesh.errors import ClientError

# What a look has become, shown: the look and the one before, or why there is none.
Show = Callable[[Look | ClientError, Look | None], None]
_QUIT = "qQ"


def run(args: argparse.Namespace) -> int:
    """Raises ClientError when the first look fails; a server that goes away later is shown as away."""
    given = options_of(args, TopArguments)
    count = 1 if given.once else given.count
    with ExitStack() as stack:
        stack.enter_context(sigterm_exits())
        control = stack.enter_context(ControlClient(given.address, connection=connection(given.connection)))
        first = look_at(control)
        show = _as_lines if given.json else _on_console(Console(), given.address, stack)
        keyboard = stack.enter_context(Keyboard(sys.stdin if sys.stdout.isatty() else None))
        show(first, None)
        for found, before in _looks(control, first, lambda: keyboard.wait(given.interval, _QUIT), count):
            show(found, before)
    return 0


def _looks(
    control: ControlClient, first: Look, is_over: Callable[[], bool], count: int | None
) -> Iterator[tuple[Look | ClientError, Look]]:
    """All looks after the first, each with the last that was one."""
    last, num_looks = first, 1
    while (count is None or num_looks < count) and not is_over():
        num_looks += 1
        try:
            look = look_at(control)
        except ClientError as error:
            yield error, last
        else:
            yield look, last
            last = look


def _as_lines(found: Look | ClientError, before: Look | None) -> None:
    """One object a line."""
    shown = {"error": str(found)} if isinstance(found, ClientError) else as_json(found, before)
    print(json.dumps(shown), flush=True)


def _on_console(console: Console, address: str, stack: ExitStack) -> Show:
    """In its place on a terminal; where there is none, one below the other."""

    def view(found: Look | ClientError, before: Look | None) -> RenderableType:
        if isinstance(found, ClientError):
            return problem(address, str(found))
        return render(found, before, console.width)

    if not console.is_terminal or console.is_dumb_terminal:

        def below(found: Look | ClientError, before: Look | None) -> None:
            console.print(view(found, before))
            console.print()
            console.file.flush()

        return below
    live = stack.enter_context(Live(console=console, auto_refresh=False))
    return lambda found, before: live.update(view(found, before), refresh=True)


def look_at(control: ControlClient) -> Look:
    """Raises ClientError."""
    return Look(
        time.monotonic(),
        control.server_info(),
        control.load(),
        tuple(control.topology(include_experts=True)),
    )
