"""Tensors of which each is given away, once."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class GivenAway(Mapping[str, Tensor]):
    """What is asked for is given, and is gone from here: kernels that pack a tensor in a layout of their own
    let go of it, so that what is packed and what is not are never both there."""

    def __init__(self, names: Iterable[str], give: Callable[[str], Tensor]) -> None:
        """`give` is asked for each of the names once at most."""
        self._names, self._give = dict.fromkeys(names), give

    def __getitem__(self, name: str) -> Tensor:
        del self._names[name]
        return self._give(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
