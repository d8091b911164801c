"""What a sweep asks of the place where a cell's server runs: this machine, namespaces of it, or a cluster."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from scaling.cell import Cell, Fault


class Running(Protocol):
    """A server that is ready. Addresses are HOST:PORT and can be dialled from this process."""

    @property
    def grpc_address(self) -> str: ...

    @property
    def http_address(self) -> str: ...

    @property
    def control_address(self) -> str: ...

    def pids(self) -> Mapping[str, Sequence[int]]:
        """The processes of this machine that serve, by role: coordinator, engine, front, workers, ray."""

    def inject(self, fault: Fault) -> AbstractContextManager[None]:
        """The fault is in force when the block begins, and over (healed, or for good) when it has ended.
        Raises RuntimeError where it could not be done."""


class Topology(Protocol):
    """One way of starting a cell's server."""

    def missing(self, cell: Cell) -> str:
        """What this machine lacks for it, in one line; empty: it can be tried."""

    def start(
        self, cell: Cell, checkpoint: Path, arguments: Sequence[str], log: Path
    ) -> AbstractContextManager[Running]:
        """`arguments` are further ones of `expertmesh serve`; its own are those that say where (Ray,
        addresses, number of workers). The server is READY when the block begins; nothing of it is left after
        it. Raises RuntimeError, a line that says why it did not start, with the end of its log."""
