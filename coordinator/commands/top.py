"""expertmesh top: load, workers, experts and rates of a running server, live."""

import argparse
import time

from rich.console import Console
from rich.live import Live

from coordinator.client_messages import ClientError
from coordinator.commands.connection import connection
from coordinator.commands.top_view import Look, problem, render
from coordinator.control_client import ControlClient


def run(args: argparse.Namespace) -> int:
    """Raises ClientError when the first look fails; a server that goes away later is shown as away."""
    console = Console()
    with ControlClient(args.address, connection=connection(args)) as control:
        look = _look(control)
        with Live(render(look, None), console=console, auto_refresh=False) as live:
            remaining = None if args.count is None else args.count - 1
            while remaining is None or remaining > 0:
                # The one wait that is meant: it paces what a person reads.
                time.sleep(args.interval)
                look = _show(control, live, look)
                remaining = None if remaining is None else remaining - 1
    return 0


def _show(control: ControlClient, live: Live, before: Look) -> Look:
    """Shows a new look and returns it; the old one while the server is away."""
    try:
        look = _look(control)
    except ClientError as error:
        live.update(problem(control.address, str(error)), refresh=True)
        return before
    live.update(render(look, before), refresh=True)
    return look


def _look(control: ControlClient) -> Look:
    return Look(
        time.monotonic(),
        control.server_info(),
        control.load(),
        tuple(control.topology(include_experts=True)),
    )
