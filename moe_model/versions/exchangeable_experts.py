"""The experts of a model in this process, which can be exchanged while it runs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_model.checkpoint.reader import Checkpoint
from moe_model.halt import Halt
from moe_model.kernels.base import Kernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.layers.router import Routing
from moe_model.loading import load_module
from moe_model.versions.expert_versions import Catalog, ExpertModule


class LivingLocalExperts:
    """As LocalExperts, an ExpertBackend; and LivingExperts."""

    def __init__(self, catalog: Catalog, kernels: Kernels, load: Callable[[ExpertModule], Expert]) -> None:
        """Loads all modules of the catalog. Raises whatever `load` raises."""
        self._load = load
        self._catalog = catalog
        self._bank = kernels.bank({module.key: load(module) for module in catalog.modules})
        # Loaded, and not in the bank: a bank may have its own copy of what it was given.
        self._prepared: dict[ExpertKey, Expert] = {}

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self._bank.run_tokens(layer, x_TD, routing)

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """Nothing is gained by waiting: it is computed now."""
        return self.forward(layer, x_TD, routing)

    def finish(self, begun: Tensor) -> Tensor:
        return begun

    def prepare(self, module: ExpertModule) -> None:
        """As LivingExperts. Raises CheckpointError naming the file and the tensor."""
        self._prepared[module.key] = self._load(module)

    def switch(self, catalog: Catalog) -> None:
        """As LivingExperts; layers that stay as they are cost nothing."""
        bank = self._bank
        for layer, (old, new) in enumerate(zip(self._catalog.columns, catalog.columns, strict=True)):
            if old != new:
                prepared = {m.slot: self._prepared[m.key] for m in new if m.key in self._prepared}
                bank = bank.with_layer(layer, [module.slot for module in new], prepared)
        self._bank, self._catalog = bank, catalog
        for key in catalog.keys:
            self._prepared.pop(key, None)

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """The bank let go of its own with the switch."""
        for key in keys:
            self._prepared.pop(key, None)

    @property
    def keys(self) -> frozenset[ExpertKey]:
        """The modules that are held."""
        return frozenset(self._catalog.keys) | frozenset(self._prepared)


def load_living_experts(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels,
    *,
    int8: bool = False,
    halt: Halt | None = None,
) -> LivingLocalExperts:
    """Reads every expert into this process. Raises CheckpointError naming the file and the tensor; once
    `halt` is set HaltedError, also of a later load."""
    config = checkpoint.config

    def load(module: ExpertModule) -> Expert:
        if halt is not None:
            halt.check()
        expert, _ = load_module(checkpoint, module, dtype, device, kernels, int8=int8)
        return expert

    return LivingLocalExperts(Catalog.of_checkpoint(config.n_layers, config.n_experts), kernels, load)
