"""Where experts run: the seam, and the backend that runs them all in this process."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from moe_model.kernels.base import ExpertBank
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule


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


@runtime_checkable
class LivingExperts(Protocol):
    """A backend whose modules can be exchanged while it runs. It begins with the checkpoint's.

    A layer's routings name columns of the catalog that was last switched to; an absent expert's is the number
    of columns that the layer has.
    """

    def prepare(self, module: ExpertModule) -> None:
        """Loads it beside the others, so that `switch` takes no time. Blocks; any thread. ExpertMeshError."""

    def switch(self, catalog: Catalog) -> None:
        """The columns from now on, all of prepared modules. On the thread that runs the experts, while
        nothing is begun. Changes all or, when it raises, nothing."""

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """These are in no catalog and will not be again. On any thread, after `switch`; must not wait."""


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
