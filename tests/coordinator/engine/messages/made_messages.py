"""Any value of any message, from the types of its fields alone: a new message needs nothing here."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moe_model.config import FamilyConfig, ModelConfig
from moe_model.sampling.params import SamplingParams

FINITE = st.floats(allow_nan=False)
_COUNT = st.integers(1, 99)
# Those that check themselves.
_BOUNDED: dict[type, st.SearchStrategy[Any]] = {
    ModelConfig: st.builds(
        ModelConfig,
        family=st.text(max_size=9),
        n_layers=st.integers(2, 99),
        n_experts=st.integers(2, 99),
        vocab_size=_COUNT,
        max_seq_len=_COUNT,
        tie_embedding=st.booleans(),
        n_kv_heads=st.sampled_from([0, 1, 4]),
        dense_layers=st.sampled_from([(), (0,)]),
        own=st.just(FamilyConfig()),
    ),
    SamplingParams: st.builds(
        SamplingParams,
        st.floats(0, 2),
        st.integers(0, 99),
        st.floats(0.01, 1),
        st.floats(0, 1),
        st.integers(0, (1 << 64) - 1),
        st.floats(-2, 2),
        st.floats(-2, 2),
        st.floats(0.01, 2),
        st.lists(st.tuples(st.integers(0, 99), st.floats(-9, 9)), max_size=3).map(tuple),
    ),
}
_PLAIN: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: FINITE,
    str: st.text(max_size=9),
    bytes: st.binary(max_size=9),
    NoneType: st.none(),
    np.ndarray: arrays.arrays(
        st.sampled_from([np.uint8, np.uint16]), arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)
    ),
}


def has_fields(hint: Any) -> bool:
    """Whether it is a class of plain data with named fields."""
    return isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, msgspec.Struct))


def parts(hint: Any) -> Iterator[Any]:
    """A type, and every type in it."""
    yield hint
    inner = get_type_hints(hint).values() if has_fields(hint) else get_args(hint)
    for each in inner:
        if each is not Ellipsis:
            yield from parts(each)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Raises TypeError for what is not plain data."""
    if hint in _BOUNDED:
        return _BOUNDED[hint]
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if has_fields(hint):
        return st.builds(hint, **{name: values(each) for name, each in get_type_hints(hint).items()})
    return _container(get_origin(hint), get_args(hint), hint)


def _container(origin: Any, inner: tuple[Any, ...], hint: Any) -> st.SearchStrategy[Any]:
    if origin in (Union, UnionType):
        return st.one_of(*map(values, inner))
    if origin is tuple and inner[-1:] == (Ellipsis,):
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, inner))
    if origin is frozenset:
        return st.frozensets(values(inner[0]), max_size=3)
    if origin in (dict, Mapping):
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=3)
    raise TypeError(f"{hint} is not plain data")
