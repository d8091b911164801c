"""What `quantization_config` of a config.json may say. Anything else is refused before weights are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

QUANTIZATION = "quantization_config"
# Which layers stay as they are shows in the tensors; how activations are scaled is for products in 8 bits.
_LISTS = frozenset({"modules_to_not_convert", "modules_to_convert", "ignored_layers"})
_MAX_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class BlockFp8:
    """Matrices of e4m3 values with one scale for each block of `rows` x `columns`."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Matrices of 4-bit values, with one scale, a power of two, for each 32 of a row."""


Quantisation = BlockFp8 | Mxfp4


def read_quantisation(found: object) -> Quantisation | None:
    """None for weights that are not quantised. Raises ConfigError naming the key."""
    if found is None:
        return None
    try:
        if not isinstance(found, Mapping):
            raise ConfigError(f"expected an object, got {type(found).__name__}")
        method = found.get("quant_method")
        if not isinstance(method, str) or method not in _METHODS:
            known = ", ".join(_METHODS)
            raise ConfigError(f"quant_method {brief(method)} is not one that is read: {known}")
        return _METHODS[method](found)
    except ConfigError as error:
        raise ConfigError(f"{QUANTIZATION}: {error}") from None


def _block_fp8(found: Mapping[str, Any]) -> BlockFp8:
    possible = {
        "fmt": (None, "e4m3", "float8_e4m3fn"),
        "activation_scheme": (None, "dynamic"),
        "scale_fmt": (None, "float", "ue8m0"),
        "expert_dtype": (None, "fp8"),
    }
    _check_keys(found, possible, {"weight_block_size"})
    block = found.get("weight_block_size")
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(size) is int and 1 <= size <= _MAX_BLOCK for size in block)
    ):
        raise ConfigError(f"weight_block_size: {brief(block)} is not the two sizes of a block")
    return BlockFp8(*block)


def _mxfp4(found: Mapping[str, Any]) -> Mxfp4:
    _check_keys(found, {}, set())
    return Mxfp4()


def _check_keys(
    found: Mapping[str, Any], possible: Mapping[str, tuple[object, ...]], others: set[str]
) -> None:
    """Raises ConfigError for a key that is not known, and for another value than those possible."""
    for name, value in found.items():
        if name in possible:
            if value not in possible[name]:
                raise ConfigError(f"{name}: {brief(value)} is not supported")
        elif name in _LISTS:
            is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
            if value is not None and not is_list:
                raise ConfigError(f"{name}: expected a list of names")
        elif name not in {"quant_method", "dequantize", *others}:
            raise ConfigError(f"unknown key {name[:80]!r}")


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Quantisation]] = {"fp8": _block_fp8, "mxfp4": _mxfp4}
