"""Which tensors a family's folder has, and of which of ours each consists: where ours come from, backwards.

Shapes: N items of a stacked tensor (its first dimension), R rows, I inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.families.base import Shapes
from moe_model.families.hugging_face import HuggingFaceModel, Part, Sources

# Parts that together are all rows, in their order.
_WHOLES: tuple[tuple[Part, ...], ...] = (("all",), ("first_half", "second_half"), ("even", "odd"))


@dataclass(frozen=True, slots=True)
class Piece:
    """What is written at once: the tensor `name` of a folder, or one `item` of it. `ours`: the names of the
    tensors that are its rows, by which rows they are."""

    name: str
    item: int | None
    ours: Mapping[Part, str]
    is_transposed: bool

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """From tensors by our names."""
        rows = [tensors[self.ours[part]] for part in self._parts()]
        whole = rows[0]
        if "even" in self.ours:
            whole = torch.stack(rows, dim=1).flatten(0, 1)
        elif len(rows) > 1:
            whole = torch.cat(rows)
        return (whole.t() if self.is_transposed else whole).contiguous()

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """From shapes by our names."""
        first, *rest = shapes[self.ours[self._parts()[0]]]
        shape = (first * len(self.ours), *rest)
        return shape[::-1] if self.is_transposed else shape

    def _parts(self) -> tuple[Part, ...]:
        return next(whole for whole in _WHOLES if set(whole) == set(self.ours))


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the folder. `num_items`: of a stacked one."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    num_items: int | None = None

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.shape if self.num_items is None else (self.num_items, *self.shape)


class Layout:
    """Of one model; `dtype` is that of everything but what its family keeps in float32."""

    def __init__(self, config: ModelConfig, names: HuggingFaceModel, dtype: torch.dtype) -> None:
        self._config, self._names, self._dtype = config, names, dtype
        self._family = family_of(config)
        self._shared_shapes = self._family.shared_shapes(config)
        self._expert_shapes = self._family.expert_shapes(config)

    def shared(self) -> list[Piece]:
        return _pieces(self._names.shared_sources(self._config, self._shared_shapes))

    def expert(self, layer: int, expert: int) -> list[Piece]:
        return _pieces(self._names.expert_sources(self._config, layer, expert))

    def tensors(self) -> dict[str, Planned]:
        """All of the folder, in the order in which they are written."""
        planned: dict[str, Planned] = {}
        kept = self._family.float32_names(self._config)
        for piece in self.shared():
            is_kept = not kept.isdisjoint(piece.ours.values())
            _add(planned, piece, torch.float32 if is_kept else self._dtype, piece.shape(self._shared_shapes))
        for layer, expert in self.experts():
            for piece in self.expert(layer, expert):
                _add(planned, piece, self._dtype, piece.shape(self._expert_shapes))
        return planned

    def experts(self) -> Iterator[tuple[int, int]]:
        for layer in self._config.moe_layers:
            for expert in self._config.experts_of(layer):
                yield layer, expert


def _add(planned: dict[str, Planned], piece: Piece, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    num_items = None if piece.item is None else piece.item + 1
    assert num_items is not None or piece.name not in planned, piece.name
    planned[piece.name] = Planned(dtype, shape, num_items)


def _pieces(sources: Sources) -> list[Piece]:
    """By the first place that each source names, which is the published one."""
    found: dict[tuple[str, int | None], dict[str, Any]] = {}
    for ours, (source, *_) in sources.items():
        piece = found.setdefault(
            (source.name, source.item), {"ours": {}, "is_transposed": source.is_transposed}
        )
        piece["ours"][source.part] = ours
    return [Piece(name, item, **parts) for (name, item), parts in found.items()]
