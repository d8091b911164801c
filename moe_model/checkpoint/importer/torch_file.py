"""Reads a `.pt` file without running what is pickled in it. The only place that calls torch.load."""

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from moe_model.errors import CheckpointError
from moe_model.files.whole_file import reason

_FOREIGN = re.compile(r"unsupported global:?(?: global)? (\w+(?:\.\w+)+)", re.IGNORECASE)
_ZIP_MAGIC = b"PK\x03\x04"
# What the unpickler and torch raise on bytes that are no file of theirs, found by feeding them such bytes.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    ArithmeticError,
    MemoryError,
    ImportError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


def load_torch_file(path: Path) -> object:
    """The object in a `.pt` file, its tensors mapped from disk where the file allows it.

    Raises CheckpointError for a file that is unreadable or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a file")
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP_MAGIC
        if is_zip:
            _check_records(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: {_explain(error)}") from None
    return loaded


def _check_records(path: Path) -> None:
    """Raises CheckpointError for a record that is more than its bytes in the file: PyTorch writes none."""
    with zipfile.ZipFile(path) as records:
        packed = next((each for each in records.infolist() if each.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise CheckpointError(f"{path}: its record {packed.filename[:80]!r} is compressed, PyTorch's are not")


def _explain(error: BaseException) -> str:
    if pickled := _FOREIGN.search(str(error)):
        return f"holds a pickled {pickled[1][:80]}; only tensors and plain values are ever loaded"
    return "is not a readable PyTorch file, or is cut short"
