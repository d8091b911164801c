"""ModelVersion: what a model consists of from one exchange of its experts to the next.

Shapes: E outputs of a router.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from moe_model.kernels.base import Router
from moe_model.layers.dense import Gate
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import RouterWeights
from moe_model.model import LayerRouters, Model
from moe_model.versions.expert_versions import Catalog, ExpertModule


@dataclass(frozen=True, slots=True, eq=False)
class RoutedLayer:
    """A layer's router and the module behind each of its outputs, ordered by expert id.

    A dense layer has no modules, and no gate.
    """

    modules: tuple[ExpertModule, ...]
    gate: Gate | None

    @property
    def router(self) -> Router:
        """Of a layer with experts."""
        assert self.gate is not None, "a dense layer routes nothing"
        return self.gate.router

    @property
    def router_weights(self) -> RouterWeights:
        """What the router of a layer with experts was made of."""
        assert self.gate is not None, "a dense layer routes nothing"
        return self.gate.weights

    @property
    def experts(self) -> tuple[int, ...]:
        """The expert id of each output."""
        return tuple(module.expert for module in self.modules)


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """Never changes. Layers that two versions have in common are the same object. (No slots: what is
    cached needs a place.)"""

    number: int
    layers: tuple[RoutedLayer, ...]

    @classmethod
    def of_model(cls, model: Model) -> Self:
        """Number 0: a model as its checkpoint has it."""
        catalog = Catalog.of_checkpoint(model.config)
        parts = zip(catalog.columns, model.gates, strict=True)
        return cls(0, tuple(RoutedLayer(*part) for part in parts))

    def followed_by(self, layer: int, changed: RoutedLayer) -> "ModelVersion":
        """The next one, which differs in one layer."""
        return ModelVersion(self.number + 1, (*self.layers[:layer], changed, *self.layers[layer + 1 :]))

    @property
    def modules(self) -> Iterable[ExpertModule]:
        return (module for layer in self.layers for module in layer.modules)

    @cached_property
    def experts(self) -> tuple[tuple[int, ...], ...]:
        """The expert ids of each layer."""
        return tuple(layer.experts for layer in self.layers)

    @cached_property
    def exchanged(self) -> tuple[ExpertModule, ...]:
        """Its modules that are not the checkpoint's."""
        return tuple(module for module in self.modules if module.file is not None)

    @cached_property
    def expert_versions(self) -> tuple[str, ...]:
        """Each expert that is not the checkpoint's, as layer/expert:version."""
        return tuple(f"{m.layer}/{m.expert}:{m.version}" for m in self.modules if m.version or m.file)

    @cached_property
    def route(self) -> LayerRouters:
        """A `model.Route`, in columns of this version."""
        return LayerRouters(tuple(None if layer.gate is None else layer.gate.router for layer in self.layers))


def in_columns(selection: ExpertSelection | None, experts: tuple[int, ...]) -> ExpertSelection | None:
    """A selection by expert ids as one by the columns of a layer whose outputs are those experts."""
    if selection is None or selection.allowed is None:
        return selection
    allowed = tuple(column for column, expert in enumerate(experts) if expert in selection.allowed)
    return ExpertSelection(allowed, selection.top_k)


def experts_per_token(selection: ExpertSelection | None, experts: tuple[int, ...], top_k: int) -> int:
    """How many experts every token of a request goes to, in a layer with these."""
    if selection is None:
        return top_k
    num_allowed = len(experts) if selection.allowed is None else len(set(experts) & set(selection.allowed))
    return min(selection.top_k or top_k, num_allowed)
