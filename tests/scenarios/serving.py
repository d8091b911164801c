"""A server of the bundled model for a scenario of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expertmesh import ControlClient
from tests.integration.processes import DEMO_CHECKPOINT, Server
from tests.scenarios.under_load import Load, Operator


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[tuple[Load, Operator]]:
    with Server(str(DEMO_CHECKPOINT), *arguments, log=log) as server:
        server.wait_ready()
        with ControlClient(server.address_of("control")) as control:
            yield Load(server.address), Operator(control)
