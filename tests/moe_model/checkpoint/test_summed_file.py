"""Safetensors files of which sum and tensors are known: read in pieces, and believed only as a whole."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from moe_model.checkpoint.summed_file import converted, read_summed
from moe_model.errors import CheckpointError
from moe_model.files.piece_file import PieceFile

TENSORS = {
    "b": torch.arange(6.0).view(2, 3).bfloat16(),
    "a": torch.tensor([1.5, -2.25]).bfloat16(),
    "wide": torch.tensor([1 / 3, 1e-9]),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def written(path: Path, data: bytes) -> tuple[PieceFile, str]:
    path.write_bytes(data)
    return PieceFile(path), hashlib.sha256(data).hexdigest()


def read(file: PieceFile, sha256: str) -> dict[str, torch.Tensor]:
    return read_summed(file, sha256, SHAPES, torch.bfloat16, {"wide"})


def test_tensors_in_memory_of_their_own(tmp_path: Path) -> None:
    found = read(*written(tmp_path / "x", save(TENSORS)))
    assert list(found) == list(SHAPES)
    for name, tensor in found.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize("place", [0, 3, 8, 20, -1, -10])
def test_a_byte_that_is_another_is_another_sum_wherever_it_is(place: int, tmp_path: Path) -> None:
    data = bytearray(save(TENSORS))
    sha256 = hashlib.sha256(data).hexdigest()
    data[place] ^= 1
    file, _ = written(tmp_path / "x", bytes(data))
    with pytest.raises(CheckpointError, match="x: SHA-256 is not the manifest's"):
        read(file, sha256)


def test_what_is_summed_is_all_of_the_file(tmp_path: Path) -> None:
    file, sha256 = written(tmp_path / "x", save({**TENSORS, "more": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="unknown tensor 'more'"):
        read(file, sha256)
    file, sha256 = written(tmp_path / "y", save(TENSORS) + b"x")
    with pytest.raises(CheckpointError, match="header describes"):
        read(file, sha256)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    broken = {**TENSORS, "a": torch.tensor([1.0, torch.nan]).bfloat16()}
    with pytest.raises(CheckpointError, match="x: tensor 'a' has values that are not finite as bfloat16"):
        read(*written(tmp_path / "x", save(broken)))


def test_conversion_gives_each_away_and_notices_what_is_beyond(tmp_path: Path) -> None:
    tensors = dict(TENSORS)
    found = converted(tensors, torch.float32, "cpu", "x", {"wide"})
    assert tensors == {}
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["b"], TENSORS["b"].float())
    with pytest.raises(CheckpointError, match="x: tensor 'a' has values that are not finite as float16"):
        converted({"a": torch.tensor([1e30])}, torch.float16, "cpu", "x")
