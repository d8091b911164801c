"""Modules in files of their own: what is not exactly what was promised is refused by name."""

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from moe_model.checkpoint.expert_files import read_expert_file
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.versions.expert_versions import ExpertFile
from tests.models import TINY, random_weights

WEIGHTS = random_weights(TINY).experts[0, 1]


def write(path: Path, tensors: dict[str, Tensor] = WEIGHTS) -> ExpertFile:
    return promised(path, safetensors.torch.save(tensors))


def promised(path: Path, data: bytes) -> ExpertFile:
    path.write_bytes(data)
    return ExpertFile(str(path), len(data), hashlib.sha256(data).hexdigest())


def test_a_good_one_is_read_in_any_dtype(tmp_path: Path) -> None:
    file = write(tmp_path / "m")
    tensors = read_expert_file(file, TINY, torch.float32)
    assert tensors.keys() == family_of(TINY).expert_shapes(TINY).keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    half = read_expert_file(file, TINY, torch.float32, torch.bfloat16)
    assert all(torch.equal(half[name], WEIGHTS[name].bfloat16()) for name in WEIGHTS)


def refusal(file: ExpertFile, stored: torch.dtype = torch.float32) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_expert_file(file, TINY, stored)
    message = str(caught.value)
    assert message.startswith(f"{file.path}: ")
    assert "\n" not in message
    return message


def test_what_changed_since_it_was_checked_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m")
    assert "SHA-256" in refusal(replace(file, sha256="0" * 64))
    assert f"bytes, expected {file.size + 1}" in refusal(replace(file, size=file.size + 1))
    assert f"at most {file.size - 1} are allowed" in refusal(replace(file, size=file.size - 1))
    os.truncate(file.path, 100)
    assert "has 100 bytes" in refusal(file)
    os.unlink(file.path)
    assert "No such file" in refusal(file)


def test_a_huge_file_is_not_read_even_if_it_was_promised(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.touch()
    os.truncate(path, 1 << 40)
    assert "are allowed" in refusal(ExpertFile(str(path), 1 << 40, ""))


def test_only_a_regular_file_at_an_absolute_path_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "m")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    os.mkfifo(tmp_path / "pipe")
    assert "is a symbolic link" in refusal(replace(file, path=str(tmp_path / "link")))
    assert "is not a regular file" in refusal(replace(file, path=str(tmp_path / "pipe")))
    assert "Is a directory" in refusal(replace(file, path=str(tmp_path)))
    assert "is not an absolute path" in refusal(replace(file, path="m"))


def test_other_tensors_than_a_module_s_are_named(tmp_path: Path) -> None:
    name = min(WEIGHTS)
    path = tmp_path / "m"
    missing = {other: tensor for other, tensor in WEIGHTS.items() if other != name}
    assert f"tensor {name!r} is missing" in refusal(write(path, missing))
    assert "unknown tensor 'more'" in refusal(write(path, {**WEIGHTS, "more": torch.ones(1)}))
    assert f"tensor {name!r} has shape [3]" in refusal(write(path, {**WEIGHTS, name: torch.ones(3)}))
    half = {other: tensor.bfloat16() for other, tensor in WEIGHTS.items()}
    assert "has dtype 'BF16', expected 'F32'" in refusal(write(path, half))
    assert "has dtype 'F32', expected 'BF16'" in refusal(write(path), torch.bfloat16)
    assert "is not a safetensors file" in refusal(promised(path, b"PK\x03\x04" + bytes(100)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_their_tensor(tmp_path: Path, value: float) -> None:
    name = max(WEIGHTS)
    bad = WEIGHTS[name].clone()
    bad.view(-1)[-1] = value
    message = refusal(write(tmp_path / "m", {**WEIGHTS, name: bad}))
    assert f"tensor {name!r} has values that are not finite" in message


def test_values_that_the_asked_dtype_has_not_are_refused(tmp_path: Path) -> None:
    name = max(WEIGHTS)
    file = write(tmp_path / "m", {**WEIGHTS, name: torch.full_like(WEIGHTS[name], 3.4028e38)})
    read_expert_file(file, TINY, torch.float32)
    with pytest.raises(CheckpointError, match="not finite"):
        read_expert_file(file, TINY, torch.float32, torch.bfloat16)
