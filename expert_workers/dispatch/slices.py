"""SlicedDispatches: an ExpertBackend over a pool whose experts are in slices.

All slices of a layer are begun before the first of them is finished, so that all workers compute at the same
time, wherever each slice is. Shapes: T tokens, D d_model.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from expert_workers.dispatch.pool import Begun, ExpertPool
from moe_model.layers.router import Routing


class BegunSlices(NamedTuple):
    """A layer's rows at the slices of its experts, in the order in which what they say is added up."""

    x_TD: Tensor
    parts: Sequence[Begun]


class SlicedDispatches:
    """Belongs to the thread that dispatches, as the pool does. The sum of slices has the same bits wherever
    they are, those of LocalExperts over the same slices."""

    def __init__(self, pool: ExpertPool, num_slices: int) -> None:
        """The pool has been told of as many."""
        self._pool = pool
        self._num_slices = num_slices

    @property
    def in_c(self) -> object | None:
        """As ExpertBackend."""
        return self._pool.in_c

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """As ExpertBackend. Raises ExpertsLostError."""
        return self.finish(self.begin(layer, x_TD, routing))

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> BegunSlices:
        """As ExpertBackend. Raises ExpertsLostError."""
        return BegunSlices(x_TD, [self._pool.begin(table, x_TD, routing) for table in self._tables(layer)])

    def take_over(self, layer: int, x_TD: Tensor, routing: Routing) -> BegunSlices:
        """As ExpertBackend. Raises ExpertsLostError."""
        return BegunSlices(x_TD, self._pool.take_over_all(self._tables(layer), x_TD, routing))

    def finish(self, begun: BegunSlices) -> Tensor:
        """As ExpertBackend. Raises ExpertsLostError."""
        y_TD = self._pool.finish(begun.parts[0])
        for part in begun.parts[1:]:
            y_TD += self._pool.finish(part)
        return y_TD.to(begun.x_TD.device, begun.x_TD.dtype)

    def _tables(self, layer: int) -> range:
        return range(layer * self._num_slices, (layer + 1) * self._num_slices)
