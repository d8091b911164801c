"""Where the tensors of ours lie in a folder: the sources a family names, found, checked and read.

Of a stacked tensor only the bytes of an item are read, once, however many tensors of ours are parts of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.checkpoint.finite import require_finite
from moe_model.checkpoint.hugging_face.quantised import Quantisation
from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.hugging_face.stored import Stored, stored_tensor
from moe_model.errors import CheckpointError
from moe_model.families.hugging_face import Part, TensorSource

# Parts that together are all rows.
_WHOLES: tuple[set[Part], ...] = ({"all"}, {"first_half", "second_half"}, {"even", "odd"})


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of ours of a known shape, and where it lies. `rows`: the first of those that are wanted, and
    the one after the last; None: all."""

    stored: Stored
    source: TensorSource
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def num_bytes(self) -> int:
        """Of its part in the files, all rows of it."""
        of_item = self.stored.num_bytes // (1 if self.source.item is None else self.stored.shape[0])
        return of_item if self.source.part == "all" else of_item // 2


class Finder:
    """Finds tensors in a table. Every method raises CheckpointError naming the folder and the tensor."""

    def __init__(self, table: ShardedTable, quantisation: Quantisation | None) -> None:
        self._table, self._quantisation = table, quantisation

    def find(self, alternatives: Sequence[TensorSource], shape: tuple[int, ...]) -> Found:
        """The first of the alternatives that is there, of the shape that makes ours `shape`."""
        for source in alternatives:
            stored = stored_tensor(self._table, source.name, self._quantisation)
            if stored is not None:
                self._check_shape(stored, source, shape)
                return Found(stored, source, shape)
        raise CheckpointError(f"{self._table.where}: tensor {alternatives[0].name!r} is missing")

    def check_whole(self, found: Iterable[Found], others: frozenset[str]) -> None:
        """All items and all rows of all tensors of the folder are used, but for those of `others`."""
        uses: dict[str, dict[int | None, set[Part]]] = {}
        stored: dict[str, Stored] = {}
        for each in found:
            name = each.stored.names[0]
            stored[name] = each.stored
            uses.setdefault(name, {}).setdefault(each.source.item, set()).add(each.source.part)
        used = {name for each in stored.values() for name in each.names}
        if unknown := self._table.names - used - others:
            raise CheckpointError(f"{self._table.where}: unknown tensor {min(unknown)[:200]!r}")
        for name, items in uses.items():
            if None not in items and len(items) != stored[name].shape[0]:
                raise CheckpointError(
                    f"{self._table.where}: tensor {name!r} has {stored[name].shape[0]} items, the model has "
                    f"{len(items)}"
                )
            assert all(parts in _WHOLES for parts in items.values()), name

    def _check_shape(self, stored: Stored, source: TensorSource, shape: tuple[int, ...]) -> None:
        num_rows, *rest = shape
        expected = [num_rows * (1 if source.part == "all" else 2), *rest]
        if is_turned(stored, source):
            expected.reverse()
        found = list(stored.shape)
        if source.item is not None:
            # How many items there are in all shows when all are found.
            expected.insert(0, max(source.item + 1, found[0] if found else 0))
        if found != expected:
            message = (
                f"{self._table.where}: tensor {stored.names[0]!r} has shape {found}, expected {expected}"
            )
            raise CheckpointError(message)


def read_found(
    found: Mapping[str, Found],
    dtype: torch.dtype,
    device: str | torch.device,
    where: str,
    float32: AbstractSet[str] = frozenset(),
) -> dict[str, Tensor]:
    """All of them as `dtype`, those of `float32` as float32, by the same names.

    An item is read once, however many of them are its parts. Raises CheckpointError, also for values that are
    not finite.
    """
    tensors = dict[str, Tensor]()
    for name, rows in read_rows(found):
        # Contiguous: of alternating rows or columns a view would keep the whole item alive.
        tensor = rows.to(torch.float32 if name in float32 else dtype).contiguous()
        require_finite(tensor, found[name].source.name, where)
        tensors[name] = tensor.to(device)
    return {name: tensors[name] for name in found}


def read_rows(found: Mapping[str, Found]) -> Iterator[tuple[str, Tensor]]:
    """Each as it is stored, perhaps as a view; parts of one item together. Raises CheckpointError."""
    last = _Item()
    for name, each in sorted(found.items(), key=lambda item: _place(item[1])):
        yield name, _read(each, last)


def _place(found: Found) -> tuple[str, int]:
    """Parts of one item are neighbours."""
    return found.stored.names[0], -1 if found.source.item is None else found.source.item


class _Item:
    """The rows of an item that were read last."""

    def __init__(self) -> None:
        self._what: tuple[str, int | None, int, int] | None = None
        self._tensor = torch.empty(0)

    def read(self, stored: Stored, item: int | None, begin: int, end: int) -> Tensor:
        what = stored.names[0], item, begin, end
        if what != self._what:
            self._what = None
            self._tensor = stored.read(item, begin, end)
            self._what = what
        return self._tensor

    def read_all(self, stored: Stored, item: int | None) -> Tensor:
        return self.read(stored, item, 0, stored.shape[0 if item is None else 1])


def _read(found: Found, last: _Item) -> Tensor:
    stored, source = found.stored, found.source
    num_rows = found.shape[0]
    begin, end = found.rows or (0, num_rows)
    if is_turned(stored, source):
        return _part(last.read_all(stored, source.item).t(), source.part, num_rows)[begin:end]
    match source.part:
        case "all" | "first_half":
            return stored.read(source.item, begin, end)
        case "second_half":
            return stored.read(source.item, num_rows + begin, num_rows + end)
        case _:
            return _part(last.read(stored, source.item, 2 * begin, 2 * end), source.part, end - begin)


def _part(rows: Tensor, part: Part, num_rows: int) -> Tensor:
    match part:
        case "all":
            return rows
        case "first_half":
            return rows[:num_rows]
        case "second_half":
            return rows[num_rows:]
        case "even":
            return rows[0::2]
        case "odd":
            return rows[1::2]


def is_turned(stored: Stored, source: TensorSource) -> bool:
    """Whether its rows are inputs."""
    return source.is_transposed and not stored.has_rows_of_outputs
