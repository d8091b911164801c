"""Expert modules: what an expert of a layer is in one version, and which of them a model uses.

A module has a slot, its number within its layer for as long as a coordinator lives: the checkpoint's experts
have their own ids for slots, and each later version takes the next one, which no other ever gets. Workers
know slots; people know expert ids and versions; a router's outputs are columns.

Where experts are computed in slices, a slice is a module too. S slices of the module in slot n have the slots
from n S on, of which only what runs the experts knows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from moe_model.config import ModelConfig
from moe_model.layers.expert_key import ExpertKey
from moe_model.layers.expert_slices import WHOLE, ExpertSlice


@dataclass(frozen=True, slots=True)
class ExpertFile:
    """A file with one module, which must be what it was when it was checked. `path` is absolute."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExpertModule:
    """`version` 0 is the checkpoint's; `file` None: the one in the checkpoint; `part`: which slice it is."""

    layer: int
    slot: int
    expert: int
    version: int = 0
    file: ExpertFile | None = None
    part: ExpertSlice = WHOLE

    @property
    def key(self) -> ExpertKey:
        return self.layer, self.slot

    def slices(self, num_slices: int) -> "tuple[ExpertModule, ...]":
        """Of a whole module; itself, where there is but one."""
        if num_slices == 1:
            return (self,)
        slots = slice_slots(self.slot, num_slices)
        return tuple(
            replace(self, slot=slot, part=ExpertSlice(index, num_slices)) for index, slot in enumerate(slots)
        )

    @property
    def whole(self) -> "ExpertModule":
        """What it is a slice of."""
        return self if self.part == WHOLE else replace(self, slot=self.slot // self.part.num, part=WHOLE)


def slice_slots(slot: int, num_slices: int) -> range:
    """The slots of the slices of a module."""
    return range(slot * num_slices, (slot + 1) * num_slices)


def slice_keys(keys: Iterable[ExpertKey], num_slices: int) -> tuple[ExpertKey, ...]:
    """Of the slices of these modules."""
    return tuple((layer, each) for layer, slot in keys for each in slice_slots(slot, num_slices))


def checkpoint_modules(keys: Iterable[ExpertKey]) -> tuple[ExpertModule, ...]:
    """The checkpoint's own modules: layer and expert id, which is the slot too."""
    return tuple(ExpertModule(layer, expert, expert) for layer, expert in keys)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The modules in use: `columns[layer][column]` is what a router's output stands for.

    A dense layer has no columns. Of slices, a layer has the first ones of all columns, then all second ones,
    and so on.
    """

    columns: tuple[tuple[ExpertModule, ...], ...]

    @classmethod
    def of_checkpoint(cls, config: ModelConfig) -> Self:
        return cls(
            tuple(
                tuple(ExpertModule(layer, expert, expert) for expert in config.experts_of(layer))
                for layer in range(config.n_layers)
            )
        )

    def sliced(self, num_slices: int) -> "Catalog":
        """Of whole modules: their slices."""
        return Catalog(
            tuple(
                tuple(
                    part
                    for parts in zip(*(m.slices(num_slices) for m in layer), strict=True)
                    for part in parts
                )
                for layer in self.columns
            )
        )

    @property
    def modules(self) -> Iterator[ExpertModule]:
        return (module for layer in self.columns for module in layer)

    @property
    def keys(self) -> Iterator[ExpertKey]:
        return (module.key for module in self.modules)
