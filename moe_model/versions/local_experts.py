"""LocalExperts: the experts of a model in this process."""

from collections.abc import Callable, Sequence
from typing import NoReturn

from torch import Tensor

from moe_model.errors import NoWorkersError
from moe_model.kernels.base import Kernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule, slice_keys
from moe_model.versions.load_modules import load_modules


class LocalExperts:
    """RunningExperts, all in this process; the specification that experts on workers must equal.

    There are no workers: `topology` is empty, `scale` is refused, and no expert is ever lost.
    """

    answers_travel = False
    num_replicas = 0
    certificate_end: float | None = None

    def __init__(
        self,
        catalog: Catalog,
        kernels: Kernels,
        load: Callable[[ExpertModule], Expert],
        num_slices: int = 1,
    ) -> None:
        """Loads so many slices of all modules of the catalog, by `load`, which is called on other threads.
        Raises what it raises."""
        self._load = load
        self._num_slices = num_slices
        self._catalog = catalog = catalog.sliced(num_slices)
        experts = load_modules(load, tuple(catalog.modules))
        self._bank = kernels.bank(dict(zip(catalog.keys, experts, strict=True)))
        # Loaded, and not in the bank: a bank may have its own copy of what it was given.
        self._prepared: dict[ExpertKey, Expert] = {}

    @property
    def in_c(self) -> object | None:
        return self._bank.in_c

    def take_over(self, layer: int, x_TD: Tensor, routing: Routing) -> NoReturn:
        raise AssertionError("experts in this process are done when they are begun")

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self._bank.run_tokens(layer, x_TD, routing)

    # A caller gains nothing by waiting: the rows are computed when they are begun.
    begin = forward

    def finish(self, begun: Tensor) -> Tensor:
        return begun

    def prepare(self, module: ExpertModule) -> None:
        """As RunningExperts. Raises CheckpointError naming the file and the tensor."""
        self._prepared |= {each.key: self._load(each) for each in module.slices(self._num_slices)}

    def switch(self, catalog: Catalog) -> None:
        """As RunningExperts; layers that stay as they are cost nothing."""
        bank, catalog = self._bank, catalog.sliced(self._num_slices)
        for layer, (old, new) in enumerate(zip(self._catalog.columns, catalog.columns, strict=True)):
            if old != new:
                prepared = {m.slot: self._prepared[m.key] for m in new if m.key in self._prepared}
                bank = bank.with_layer(layer, [module.slot for module in new], prepared)
        self._bank, self._catalog = bank, catalog
        for key in catalog.keys:
            self._prepared.pop(key, None)

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """The bank let go of its own with the switch."""
        for key in slice_keys(keys, self._num_slices):
            self._prepared.pop(key, None)

    @property
    def keys(self) -> frozenset[ExpertKey]:
        """The modules that are held, or their slices."""
        return frozenset(self._catalog.keys) | frozenset(self._prepared)

    def idle(self) -> None:
        """Experts in this process need no looking after."""

    def tell_dispatches(self) -> None:
        """Nothing is dispatched."""

    def found(self) -> None:
        """No expert was lost."""

    def wait_for_lost(self, timeout: float) -> bool:
        """No expert can be lost, so there is none to wait for."""
        return False

    def missing_experts(self) -> tuple[()]:
        return ()

    def holders(self, key: ExpertKey) -> tuple[()]:
        """No worker holds a module."""
        return ()

    def topology(self) -> tuple[()]:
        return ()

    def scale(self, num_workers: int, timeout: float) -> NoReturn:
        raise NoWorkersError("all experts run in this process: there are no workers to scale")
