"""Where experts run: the seam between a layer and its experts, wherever these are."""

from typing import Any, Protocol

from torch import Tensor

from moe_model.layers.router import Routing


class ExpertBackend(Protocol):
    """Runs the experts of a layer, wherever they are.

    A backend whose answer takes a way lets others be begun, and other work be done, until it is there. What
    is begun is finished in the same order, or never.
    """

    @property
    def in_c(self) -> object | None:
        """What C runs these experts by, without the interpreter: a capsule. None: they are begun and finished
        from Python."""

    def take_over(self, layer: int, x_TD: Tensor, routing: Routing) -> Any:
        """Of rows that C has begun and could not finish: what `finish` takes."""

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """Returns y_TD = Σ_k weight_k · expert_k(x), in x's dtype and on x's device: `finish` of `begin`."""

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Any:
        """Sends the rows; returns at once. The caller leaves x_TD as it is until this is finished."""

    def finish(self, begun: Any) -> Tensor:
        """Waits for y_TD."""
