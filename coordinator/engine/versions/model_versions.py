"""ModelVersions: which versions of the model are in use, and what the experts' backend is told.

    switch    requests that come from now on use another version; both are in use
    keep      versions that no sequence uses any more are dropped, and the modules that only they had

On the engine's thread, but for `live`, which any thread may read.
"""

from collections.abc import Iterable, Set
from collections.abc import Sequence as Seq

import numpy as np

from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Chunk
from coordinator.engine.messages.errors import UnknownExpertError
from coordinator.engine.versions.row_routes import LayerColumns, RowRoutes, Run
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.model import Model, Route
from moe_model.versions.expert_versions import Catalog
from moe_model.versions.model_version import ModelVersion, experts_per_token
from moe_model.versions.running_experts import RunningExperts


class ModelVersions:
    """The versions in use, oldest first. The last one is what new requests get."""

    def __init__(
        self, model: Model, experts: RunningExperts | None = None, *, is_forced: bool = False
    ) -> None:
        """Begins with the model as its checkpoint has it. `experts` None: the model stays so. `is_forced`: so
        it does, as rows are made to go to experts; no request selects any."""
        self.is_forced = is_forced
        self._top_k = model.config.top_k
        self._device = model.device
        self._experts = experts
        self._first = ModelVersion.of_model(model)
        self.live: tuple[ModelVersion, ...] = (self._first,)
        self._columns = self._columns_of(self.live)

    @property
    def newest(self) -> ModelVersion:
        return self.live[-1]

    @property
    def catalog(self) -> Catalog:
        """The columns that the backend knows."""
        return _catalog(self._columns)

    def switch(self, version: ModelVersion) -> None:
        """Raises what the backend raises; then nothing has changed."""
        assert version.number > self.newest.number
        self._use((*self.live, version))

    def keep(self, numbers: Set[int]) -> None:
        """Drops all but the newest and those of these numbers. Raises as `switch`."""
        live = tuple(g for g in self.live if g.number in numbers or g is self.newest)
        if len(live) == len(self.live):
            return
        before = {module.key for version in self.live for module in version.modules}
        self._use(live)
        after = {module.key for version in live for module in version.modules}
        if self._experts is not None and before > after:
            self._experts.release(sorted(before - after))

    def check(self, selection: ExpertSelection | None) -> None:
        """Raises UnknownExpertError unless the newest version has, in every layer, experts for it."""
        if selection is not None and self.is_forced:
            raise UnknownExpertError("experts: cannot be selected while the server has --force-routing")
        if selection is None or selection.allowed is None:
            return
        allowed = set(selection.allowed)
        for layer, experts in enumerate(self.newest.experts):
            if experts and allowed.isdisjoint(experts):
                raise UnknownExpertError(f"experts: layer {layer} has none of those that are allowed")

    def route(self, chunks: Seq[Chunk]) -> Route | None:
        """For the rows of these, in their order; None where the model's own routers say the same."""
        if len(self.live) == 1 and all(chunk.sequence.request.experts is None for chunk in chunks):
            return None if self.newest is self._first else self.newest.route
        by_number = {version.number: version for version in self.live}
        runs = [
            Run(by_number[chunk.sequence.version], chunk.sequence.request.experts, chunk.num_tokens)
            for chunk in chunks
        ]
        return RowRoutes(runs, self._columns, self._top_k, self._device)

    def most_per_token(self, sequence: Sequence) -> int:
        """To how many experts a token of it goes, in the layer where it goes to most."""
        layers = set(self._version(sequence.version).experts)
        return max(experts_per_token(sequence.request.experts, each, self._top_k) for each in layers)

    def highest(self, number: int) -> int:
        """The highest expert id of the version of this number."""
        return max(expert for layer in self._version(number).experts for expert in layer)

    def experts_by_column(self, layer: int, absent: int) -> np.ndarray:
        """The expert id of each column, and `absent` for the one after the last."""
        return np.array([*(module.expert for module in self._columns[layer].modules), absent])

    def experts_of_columns(self, columns_TLK: np.ndarray, absent: int) -> np.ndarray:
        """ids_TLK, uint16, of layers that have experts; the columns themselves where these are the ids."""
        if len(self.live) == 1 and self.newest is self._first:
            return columns_TLK
        layers = [layer for layer, columns in enumerate(self._columns) if columns.modules]
        by_layer = [
            self.experts_by_column(layer, absent)[columns_TLK[:, place]] for place, layer in enumerate(layers)
        ]
        return np.stack(by_layer, axis=1).astype(np.uint16)

    def _version(self, number: int) -> ModelVersion:
        (found,) = (version for version in self.live if version.number == number)
        return found

    def _use(self, live: tuple[ModelVersion, ...]) -> None:
        columns = self._columns_of(live)
        assert self._experts is not None
        self._experts.switch(_catalog(columns))
        self.live, self._columns = live, columns

    def _columns_of(self, live: Iterable[ModelVersion]) -> tuple[LayerColumns, ...]:
        of_layers = zip(*(version.layers for version in live), strict=True)
        return tuple(LayerColumns(list(dict.fromkeys(routed)), self._device) for routed in of_layers)


def _catalog(columns: Seq[LayerColumns]) -> Catalog:
    return Catalog(tuple(layer.modules for layer in columns))
