"""The reader against folders that are not what their manifest says: each is refused, with the thing named."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_model.assembled import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.loading import load_local_experts, load_model
from moe_model.names import WeightForm
from moe_model.versions.local_experts import LocalExperts
from tests.examples import examples
from tests.moe_model.corruptions import (
    change_tensors,
    double_key,
    edit_manifest,
    flip_last_bit,
    replace_by_link,
    resum,
)
from tests.moe_model.source_files import write_checkpoint

SHARED = "shared.safetensors"
EXPERT = "experts/layer_0001/expert_0002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", tokenizer=b"{}")


# What Checkpoint.open sees: the manifest, and the files from outside.


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _set_size(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest["files"][name].update(size=size))


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (lambda folder: (folder / EXPERT).unlink(), f"{EXPERT}: No such file"),
        (lambda folder: _truncate(folder / EXPERT), f"{EXPERT}: has [0-9]+ bytes, its manifest says"),
        (lambda folder: replace_by_link(folder / EXPERT), f"{EXPERT}: is a symbolic link"),
        (lambda folder: replace_by_link(folder / "experts"), "experts: is not a folder"),
        (lambda folder: replace_by_link(folder / "experts/layer_0001"), "layer_0001: is not a folder"),
        (lambda folder: _replace_by_fifo(folder / EXPERT), f"{EXPERT}: is not a regular file"),
        (lambda folder: _replace_by_fifo(folder / "tokenizer.json"), "tokenizer.json: is not a regular file"),
        (lambda folder: replace_by_link(folder / "manifest.json"), "manifest.json: is a symbolic link"),
        (lambda folder: _replace_by_fifo(folder / "manifest.json"), "manifest.json: is not a regular file"),
        (lambda folder: os.truncate(folder / "manifest.json", 65 << 20), "manifest.json: has 68157440 bytes"),
        (lambda folder: _truncate(folder / "manifest.json"), None),
        (lambda folder: os.truncate(folder / "manifest.json", 20), "manifest.json: Unterminated string"),
        (_set_size(EXPERT, 1), f"{EXPERT}: 1 bytes do not fit the model"),
        (_set_size(SHARED, 1 << 45), f"{SHARED}: 35184372088832 bytes do not fit the model"),
        (_set_size("tokenizer.json", 1 << 30), "tokenizer.json: 1073741824 bytes do not fit"),
        (
            lambda folder: edit_manifest(folder, lambda manifest: manifest["model"].update(family="x")),
            "manifest.json: model: family: unknown 'x'",
        ),
        (
            lambda folder: edit_manifest(folder, lambda manifest: manifest["model"].update(d_ff=1 << 18)),
            "bytes do not fit the model",
        ),
    ],
)
def test_open_refuses_a_broken_folder(
    folder: Path, corrupt: Callable[[Path], object], reason: str | None
) -> None:
    corrupt(folder)
    if reason is None:  # only the newline at its end is gone
        Checkpoint.open(folder)
        return
    with pytest.raises(CheckpointError, match=reason) as raised:
        Checkpoint.open(folder)
    assert "\n" not in str(raised.value)


# What reading a file sees.


@pytest.mark.parametrize("name", [SHARED, EXPERT, "tokenizer.json"])
def test_a_flipped_bit_is_found(folder: Path, name: str) -> None:
    checkpoint = Checkpoint.open(folder)
    flip_last_bit(folder / name)
    readers: dict[str, Callable[[], object]] = {
        SHARED: checkpoint.read_shared,
        EXPERT: lambda: checkpoint.read_expert(1, 2),
        "tokenizer.json": checkpoint.read_tokenizer,
    }
    for read in (readers[name], checkpoint.verify):
        with pytest.raises(CheckpointError, match=f"{name}: SHA-256 is not the manifest's"):
            read()
    checkpoint.read_expert(0, 0)


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (_truncate, "has [0-9]+ bytes, its manifest says"),
        (replace_by_link, "is a symbolic link"),
        (_replace_by_fifo, "is not a regular file"),
        (Path.unlink, "No such file"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has [0-9]+ bytes, its manifest says"),
    ],
)
def test_a_file_changed_after_opening_is_found(
    folder: Path, corrupt: Callable[[Path], object], reason: str
) -> None:
    checkpoint = Checkpoint.open(folder)
    corrupt(folder / EXPERT)
    with pytest.raises(CheckpointError, match=f"{EXPERT}: {reason}"):
        checkpoint.read_expert(1, 2)


def _swap_shapes(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc1.weight"] = tensors["fc1.weight"].t().contiguous()


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (
            lambda path: change_tensors(path, _swap_shapes),
            r"'fc1.weight' has shape \[8, 12\], expected \[12, 8\]",
        ),
        (
            lambda path: change_tensors(path, lambda tensors: tensors.update(x=tensors.pop("fc1.bias"))),
            "tensor 'fc1.bias' is missing",
        ),
        (
            lambda path: change_tensors(path, lambda tensors: tensors.update({"../x": torch.ones(1)})),
            "unknown tensor '../x'",
        ),
        (
            lambda path: change_tensors(
                path, lambda tensors: tensors.update({"fc1.bias": tensors["fc1.bias"].to(torch.int32)})
            ),
            "'fc1.bias' has dtype 'I32', expected 'F32'",
        ),
        (double_key, "duplicate key 'norm.bias'"),
        (lambda path: path.write_bytes(path.read_bytes() + bytes(8)), "bytes of tensor data, its header"),
    ],
)
def test_a_bad_file_with_a_right_sum_is_found(
    folder: Path, corrupt: Callable[[Path], object], reason: str
) -> None:
    corrupt(folder / EXPERT)
    resum(folder, EXPERT)
    checkpoint = Checkpoint.open(folder)
    for read in (lambda: checkpoint.read_expert(1, 2), checkpoint.verify):
        with pytest.raises(CheckpointError, match=f"{EXPERT}: .*{reason}"):
            read()


def _set_last(value: float, tensor: str) -> Callable[[Path], None]:
    return lambda path: change_tensors(path, lambda tensors: tensors[tensor].flatten()[-1:].fill_(value))


LOADERS: dict[str, Callable[[Checkpoint], object]] = {
    "verify": lambda checkpoint: checkpoint.verify(),
    "reference": lambda checkpoint: AssembledModel.from_checkpoint(checkpoint.path),
    "local": lambda checkpoint: (
        load_model(checkpoint, _living(checkpoint), torch.float32, "cpu"),
        _living(checkpoint),
    ),
    "bfloat16": lambda checkpoint: AssembledModel.from_checkpoint(checkpoint.path, torch.bfloat16),
    "int8": lambda checkpoint: (
        load_model(checkpoint, _living(checkpoint, form="int8"), torch.float32, "cpu"),
        _living(checkpoint, form="int8"),
    ),
}


def _living(checkpoint: Checkpoint, form: WeightForm = "model") -> LocalExperts:
    return load_local_experts(checkpoint, torch.float32, "cpu", TorchKernels(), form=form)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (EXPERT, "fc1.weight"),
        (EXPERT, "norm.bias"),
        (SHARED, "embedding.weight"),
        (SHARED, "blocks.1.router.weight"),
        (SHARED, "blocks.0.qkv.weight"),
        (SHARED, "output_norm.bias"),
    ],
)
def test_numbers_that_are_none_are_never_loaded(
    folder: Path, name: str, tensor: str, value: float, load: str
) -> None:
    _set_last(value, tensor)(folder / name)
    resum(folder, name)
    with pytest.raises(CheckpointError, match=f"{name}: tensor '{tensor}' has values that are not finite"):
        LOADERS[load](Checkpoint.open(folder))


def test_what_is_too_large_for_the_dtype_asked_for_is_named(folder: Path) -> None:
    _set_last(torch.finfo(torch.float32).max, "fc1.weight")(folder / EXPERT)
    resum(folder, EXPERT)
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    with pytest.raises(CheckpointError, match=r"'fc1.weight' has values that are not finite as bfloat16"):
        checkpoint.read_expert(1, 2, torch.bfloat16)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    name=st.sampled_from(["manifest.json", SHARED, EXPERT, "tokenizer.json"]),
    fix=st.booleans(),
)
def test_any_change_of_any_file_gives_the_same_model_or_a_checkpoint_error(
    folder: Path, data: st.DataObject, name: str, fix: bool
) -> None:
    before = (folder / name).read_bytes()
    manifest = (folder / "manifest.json").read_bytes()
    changed = bytearray(before)
    position = data.draw(st.integers(0, len(before) - 1))
    changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        (folder / name).write_bytes(changed)
        if fix and name != "manifest.json":
            resum(folder, name)
        Checkpoint.open(folder).verify()
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
    finally:
        (folder / name).write_bytes(before)
        (folder / "manifest.json").write_bytes(manifest)
    assert "\n" not in message
