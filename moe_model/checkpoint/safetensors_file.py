"""One safetensors file of known names, shapes and dtype, to and from bytes.

The library accepts duplicate keys, so the header is read here and compared with what must be in it; with
names, shapes and dtype known, the offsets have to be an exact partition of the data.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from moe_model.checkpoint.finite import require_finite
from moe_model.errors import CheckpointError
from moe_model.files import strict_json
from moe_model.files.strict_json import brief

MAX_HEADER_BYTES = 32 << 20
DTYPE_CODES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.bfloat16: "BF16"}

# Of one element, for every dtype of the format.
ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}

_Shapes = Mapping[str, tuple[int, ...]]
# Tensors that are float32 where the others are of another dtype.
_Names = AbstractSet[str]
_NONE: _Names = frozenset()
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def max_bytes(shapes: _Shapes, dtype: torch.dtype, float32: _Names = _NONE) -> int:
    """How large a file with these tensors may be."""
    return num_data_bytes(shapes, dtype, float32) + 8 + MAX_HEADER_BYTES


def num_data_bytes(shapes: _Shapes, dtype: torch.dtype, float32: _Names = _NONE) -> int:
    return sum(prod(shape) * _dtype(name, dtype, float32).itemsize for name, shape in shapes.items())


def serialise(
    tensors: Mapping[str, Tensor], shapes: _Shapes, dtype: torch.dtype, where: str, float32: _Names = _NONE
) -> bytes:
    """The file's bytes, converted to `dtype`. Raises CheckpointError unless names and shapes are right."""
    check_names(tensors.keys(), shapes, where)
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(shape_message(where, name, list(tensors[name].shape), shape))
    return safetensors.torch.save(_separate(tensors, dtype, float32))


def _separate(tensors: Mapping[str, Tensor], dtype: torch.dtype, float32: _Names) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU of which no two share memory, which the library would refuse."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu", _dtype(name, dtype, float32)).contiguous()
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


def parse(
    data: bytearray, shapes: _Shapes, dtype: torch.dtype, where: str, float32: _Names = _NONE
) -> dict[str, Tensor]:
    """Views into `data`, one for each expected tensor, all values finite.

    Raises CheckpointError naming the tensor.
    """
    spans = tensor_spans(data, len(data), shapes, dtype, where, float32)
    views = {
        name: torch.frombuffer(
            data, dtype=_dtype(name, dtype, float32), count=prod(shapes[name]), offset=begin
        ).view(shapes[name])
        for name, (begin, _) in spans.items()
    }
    for name, view in views.items():
        require_finite(view, name, where)
    return views


def tensor_spans(
    start: bytes | bytearray,
    file_size: int,
    shapes: _Shapes,
    dtype: torch.dtype,
    where: str,
    float32: _Names = _NONE,
) -> dict[str, tuple[int, int]]:
    """Where in a file that begins with `start`, its header, the expected tensors are, in their order there:
    they are all that comes after it. Raises CheckpointError naming the tensor."""
    header, data_start = read_header(start, file_size, where)
    header.pop("__metadata__", None)
    check_names(header.keys(), shapes, where)
    spans = {
        name: _check_entry(
            header[name], shapes[name], _dtype(name, dtype, float32), f"{where}: tensor {name!r}"
        )
        for name in shapes
    }
    _check_partition(spans, file_size - data_start, where)
    in_order = sorted(spans.items(), key=lambda item: item[1])
    return {name: (data_start + begin, data_start + end) for name, (begin, end) in in_order}


def owned(
    views: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
    where: str,
    float32: _Names = _NONE,
) -> dict[str, Tensor]:
    """The same values in torch's own aligned memory: kernels may round differently with the alignment of
    their operands, and a view keeps the whole file's bytes alive.

    Raises CheckpointError naming the tensor that has values beyond the range of `dtype`.
    """
    tensors = {
        name: torch.empty(view.shape, dtype=_dtype(name, dtype, float32), device=device).copy_(view)
        for name, view in views.items()
    }
    for name, tensor in tensors.items():
        if tensor.dtype != views[name].dtype:
            require_finite(tensor, name, where)
    return tensors


def _dtype(name: str, dtype: torch.dtype, float32: _Names) -> torch.dtype:
    return torch.float32 if name in float32 else dtype


def read_header(data: bytes | bytearray, file_size: int, where: str) -> tuple[dict[str, Any], int]:
    """The parsed header at the start of a file, and where its tensor data starts. Raises CheckpointError."""
    length = header_length(data, file_size, where)
    try:
        header = strict_json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise CheckpointError(f"{where}: safetensors header: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{where}: safetensors header: expected an object")
    return header, 8 + length


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header. `begin` and `end` count from where the tensor data starts."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_entries(header: Mapping[str, Any], num_bytes: int, where: str) -> dict[str, Entry]:
    """The tensors of a header of which nothing is known before. Raises CheckpointError naming the tensor."""
    entries = {
        name: _read_entry(entry, f"{where}: tensor {name[:200]!r}")
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_partition({name: (entry.begin, entry.end) for name, entry in entries.items()}, num_bytes, where)
    return entries


def _read_entry(entry: Any, where: str) -> Entry:
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS or not _is_counts(entry["shape"]):
        raise CheckpointError(f"{where}: malformed header entry")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in ITEM_BYTES:
        raise CheckpointError(f"{where}: dtype {brief(entry['dtype'])} is unknown")
    begin, end = _offsets(entry, prod(entry["shape"]) * ITEM_BYTES[entry["dtype"]], where)
    return Entry(entry["dtype"], tuple(entry["shape"]), begin, end)


def header_length(data: bytes | bytearray, file_size: int, where: str) -> int:
    """The length that the first eight bytes of a file announce. Raises CheckpointError."""
    length = int.from_bytes(data[:8], "little")
    limit = min(file_size - 8, MAX_HEADER_BYTES)
    if len(data) < 8 or not 2 <= length <= limit:
        raise CheckpointError(f"{where}: is not a safetensors file, or is cut short")
    return length


def check_names(names: Any, expected: Any, where: str) -> None:
    """Raises CheckpointError naming the first tensor that is missing or that should not be there."""
    missing = set(expected) - set(names)
    if missing:
        raise CheckpointError(f"{where}: tensor {min(missing)!r} is missing")
    extra = set(names) - set(expected)
    if extra:
        raise CheckpointError(f"{where}: unknown tensor {min(extra)[:200]!r}")


def shape_message(where: str, name: str, shape: Sequence[int], expected: tuple[int, ...]) -> str:
    return f"{where}: tensor {name!r} has shape {list(shape)}, expected {list(expected)}"


def _check_entry(entry: Any, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> tuple[int, int]:
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS or not _is_counts(entry["shape"]):
        raise CheckpointError(f"{where}: malformed header entry")
    if entry["dtype"] != DTYPE_CODES[dtype]:
        raise CheckpointError(f"{where} has dtype {brief(entry['dtype'])}, expected {DTYPE_CODES[dtype]!r}")
    if entry["shape"] != list(shape):
        raise CheckpointError(f"{where} has shape {str(entry['shape'])[:80]}, expected {list(shape)}")
    return _offsets(entry, prod(shape) * dtype.itemsize, where)


def _offsets(entry: Mapping[str, Any], num_bytes: int, where: str) -> tuple[int, int]:
    offsets = entry["data_offsets"]
    if not _is_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: malformed data_offsets")
    begin, end = offsets
    if end - begin != num_bytes:
        raise CheckpointError(f"{where}: data_offsets do not fit its shape")
    return begin, end


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and n >= 0 for n in value)


def _check_partition(spans: Mapping[str, tuple[int, int]], num_bytes: int, where: str) -> None:
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            raise CheckpointError(f"{where}: tensor {name!r} overlaps another or leaves a gap")
        position = end
    if position != num_bytes:
        raise CheckpointError(
            f"{where}: has {num_bytes} bytes of tensor data, its header describes {position}"
        )
