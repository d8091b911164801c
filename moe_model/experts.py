"""Where experts run: the seam, and the backend that runs them all in this process."""

from typing import Any, Protocol

from torch import Tensor

from moe_model.kernels.base import ExpertBank
from moe_model.router import Routing


class ExpertBackend(Protocol):
    """Runs the experts of a layer, wherever they are.

    A backend whose answer takes a way lets others be begun, and other work be done, until it is there. What
    is begun is finished in the same order, or never.
    """

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """Returns y_TD = Σ_k weight_k · expert_k(x), in x's dtype and on x's device: `finish` of `begin`."""

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Any:
        """Sends the rows; returns at once. Nobody may change x_TD before it is finished."""

    def finish(self, begun: Any) -> Tensor:
        """Waits for y_TD."""


class LocalExperts:
    """All experts in this process; the specification that every other backend must equal."""

    def __init__(self, bank: ExpertBank) -> None:
        self._bank = bank

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self._bank.run_tokens(layer, x_TD, routing)

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """Nothing is gained by waiting: it is computed now."""
        return self.forward(layer, x_TD, routing)

    def finish(self, begun: Tensor) -> Tensor:
        return begun
