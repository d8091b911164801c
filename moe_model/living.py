"""The experts of a model in this process, which can be exchanged while it runs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_model.checkpoint import Checkpoint
from moe_model.dispatch import Expert, ExpertKey
from moe_model.kernels.base import ExpertBank, Kernels
from moe_model.loading import load_module
from moe_model.modules import Catalog, ExpertModule
from moe_model.router import Routing


class LivingLocalExperts:
    """As LocalExperts, layer by layer: an ExpertBackend, and LivingExperts."""

    def __init__(self, catalog: Catalog, kernels: Kernels, load: Callable[[ExpertModule], Expert]) -> None:
        """Loads all modules of the catalog. Raises whatever `load` raises."""
        self._kernels = kernels
        self._load = load
        self._modules = {module.key: load(module) for module in catalog.modules}
        self._catalog = catalog
        self._banks = [self._bank(layer, columns) for layer, columns in enumerate(catalog.columns)]

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self._banks[layer].run_tokens(layer, x_TD, routing)

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """Nothing is gained by waiting: it is computed now."""
        return self.forward(layer, x_TD, routing)

    def finish(self, begun: Tensor) -> Tensor:
        return begun

    def prepare(self, module: ExpertModule) -> None:
        """As LivingExperts. Raises CheckpointError naming the file and the tensor."""
        self._modules[module.key] = self._load(module)

    def switch(self, catalog: Catalog) -> None:
        """As LivingExperts; banks of layers that stay as they are stay too."""
        pairs = zip(self._catalog.columns, catalog.columns, strict=True)
        self._banks = [
            self._banks[layer] if old == new else self._bank(layer, new)
            for layer, (old, new) in enumerate(pairs)
        ]
        self._catalog = catalog

    def release(self, keys: Sequence[ExpertKey]) -> None:
        for key in keys:
            self._modules.pop(key, None)

    @property
    def keys(self) -> frozenset[ExpertKey]:
        """The modules that are held."""
        return frozenset(self._modules)

    def _bank(self, layer: int, columns: Sequence[ExpertModule]) -> ExpertBank:
        experts = {(layer, column): self._modules[module.key] for column, module in enumerate(columns)}
        return self._kernels.bank(experts)


def load_living_experts(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels,
    *,
    int8: bool = False,
) -> LivingLocalExperts:
    """Reads every expert into this process. Raises CheckpointError naming the file and the tensor."""
    config = checkpoint.config

    def load(module: ExpertModule) -> Expert:
        expert, _ = load_module(checkpoint, module, dtype, device, kernels, int8=int8)
        return expert

    return LivingLocalExperts(Catalog.of_checkpoint(config.n_layers, config.n_experts), kernels, load)
