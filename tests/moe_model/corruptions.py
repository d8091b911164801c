"""Ways to break a checkpoint on disk, so that only the rule under test can notice."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tests.moe_model.source_files import read_manifest


def edit_manifest(folder: Path, change: Callable[[Any], object]) -> None:
    manifest = read_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def resum(folder: Path, name: str) -> None:
    """A careful attacker: the manifest is right about what is in the file."""
    data = (folder / name).read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))


def double_key(path: Path) -> None:
    """The name of one tensor becomes that of another of its shape; the library would take the last."""
    data = path.read_bytes()
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    path.write_bytes(data.replace(header, header.replace(b'"norm.weight"', b'"norm.bias"  '), 1))


def repeat_key(path: Path, entry: str) -> None:
    """One more entry at the header's beginning, of a name that comes again."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = b"{" + entry.encode() + data[9 : 8 + length]
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_by_link(path: Path, elsewhere: Path | None = None) -> None:
    """What was there is found through the link, whole and right."""
    elsewhere = elsewhere or path.with_suffix(".elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
