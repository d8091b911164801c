"""Where cells run: by the `where` of each, one topology for all of a sweep."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from scaling.cell import Cell
from scaling.hosts.topology import NamespaceTopology
from scaling.sweep.local import LocalTopology
from scaling.topology import Topology


@contextmanager
def opened(ray_address: str | None) -> Iterator[Mapping[str, Topology]]:
    """They last as long as the block; hosts in namespaces are made when the first cell wants them."""
    with NamespaceTopology() as namespaces:
        yield {
            "local": LocalTopology(),
            "cluster": LocalTopology(ray_address),
            "namespaces": namespaces,
        }


def missing_of(cell: Cell, ray_address: str | None) -> str:
    """What this machine lacks for a cell, in one line; empty: it can be tried."""
    with opened(ray_address) as topologies:
        return topologies[cell.where].missing(cell)
