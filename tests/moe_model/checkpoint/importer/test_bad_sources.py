"""Sources that are not what they should be: the thing is named, and nothing is left behind."""

import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model.checkpoint.importer import ImportOptions, ImportReport, import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import TokenizerError, UserError
from tests.moe_model.checkpoint.importer.test_torch_file import Evil
from tests.moe_model.source_files import (
    GOLDEN,
    TINY,
    StateDict,
    expert_part,
    source_config,
    state_dict,
    write_assembled,
    write_checkpoint,
    write_config,
    write_parts,
    write_safetensors,
)

EMBEDDING, HEAD = "shared.token_embedding.weight", "shared.lm_head.weight"
POSITIONS = "shared.pos_encoding.pe"
FC1 = "moe_layers.1.experts.2.fc1.weight"


def run(source: Path, dest: Path, **options: Any) -> ImportReport:
    return import_checkpoint(source, dest, ImportOptions(**options))


def refuse(source: Path, dest: Path, reason: str, **options: Any) -> None:
    before = sorted(os.listdir(dest.parent))
    with pytest.raises(UserError, match=reason) as raised:
        run(source, dest, **options)
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(dest.parent)) == before


def _changed(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[StateDict], None]:
    def apply(tensors: StateDict) -> None:
        changed = change(tensors.pop(name).clone())
        if changed is not None:
            tensors[name] = changed

    return apply


def _with(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


BAD_TENSORS = [
    (_changed(FC1, lambda _: None), f"tensor '{FC1}' is missing"),
    (_changed("moe_layers.0.ffn_norm.bias", lambda _: None), r"'moe_layers.0.ffn_norm.bias' is missing"),
    (_changed(FC1, lambda t: t.t().contiguous()), rf"'{FC1}' has shape \[8, 12\], expected \[12, 8\]"),
    (_changed(FC1, lambda t: t.int()), f"'{FC1}' is not of a floating dtype"),
    (_changed(FC1, _with(torch.nan)), f"'{FC1}' has values that are not finite"),
    (
        _changed("shared.output_norm.bias", _with(torch.inf)),
        "'shared.output_norm.bias' has values that are not finite",
    ),
    (lambda tensors: tensors.update({"extra.weight": torch.ones(1)}), "unknown tensor 'extra.weight'"),
    (
        lambda tensors: tensors.update({FC1.replace("experts.2", "experts.3"): torch.ones(12, 8)}),
        r"unknown tensor 'moe_layers.1.experts.3.fc1.weight'",
    ),
    (_changed("shared.transformer_blocks.1.ffn_norm.bias", lambda t: t[:-1].clone()), "has shape"),
    (_changed("moe_layers.1.router.noise_weight.weight", lambda t: t[1:].clone()), "has shape"),
    (
        _changed(POSITIONS, lambda t: t + 2e-4),
        "'shared.pos_encoding.pe' is not the sinusoidal position table",
    ),
    (_changed(POSITIONS, lambda t: t[:, 1:].clone()), "'shared.pos_encoding.pe' has shape"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_TENSORS)
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_bad_tensor_is_named(
    source: Path, dest: Path, change: Callable[[StateDict], None], reason: str, kind: str
) -> None:
    tensors = state_dict(TINY)
    change(tensors)
    if kind == "torch":
        path = write_assembled(source, TINY, tensors)
    else:
        path = write_safetensors(source, tensors, dropped=HEAD)
        write_config(source, TINY)
    refuse(path, dest, f"{path.name}: .*{reason}")


@pytest.mark.parametrize("name", [HEAD, EMBEDDING, POSITIONS, "moe_layers.0.router.noise_weight.weight"])
def test_a_torch_file_has_everything(source: Path, dest: Path, name: str) -> None:
    tensors = state_dict(TINY)
    del tensors[name]
    refuse(write_assembled(source, TINY, tensors), dest, f"tensor '{name}' is missing")


def test_a_safetensors_file_has_the_embedding_or_the_head(source: Path, dest: Path) -> None:
    tensors = state_dict(TINY)
    del tensors[EMBEDDING]
    write_config(source, TINY)
    refuse(write_safetensors(source, tensors, dropped=HEAD), dest, f"tensor '{EMBEDDING}' is missing")


@pytest.mark.parametrize("kind", ["torch", "safetensors", "parts"])
def test_an_untied_head_is_refused(source: Path, dest: Path, kind: str) -> None:
    tensors = state_dict(TINY)
    tensors[HEAD] = tensors[HEAD] + 1
    if kind == "torch":
        path = write_assembled(source, TINY, tensors)
    elif kind == "parts":
        path = write_parts(source, TINY, tensors)
    else:
        write_config(source, TINY)
        path = write_safetensors(source, tensors, dropped="")
    options = {"router": "uniform"} if kind == "parts" else {}
    refuse(path, dest, f"tensor '{HEAD}' differs from '{EMBEDDING}'; they must be tied", **options)


def test_a_value_that_bfloat16_cannot_hold(source: Path, dest: Path) -> None:
    tensors = state_dict(TINY)
    tensors[FC1][0, 0] = 3.4e38
    path = write_assembled(source, TINY, tensors)
    refuse(path, dest, f"'{FC1}' has values that are not finite as bfloat16", dtype=torch.bfloat16)
    run(path, dest)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"n_experts": 4}, "tensor 'moe_layers.0.experts.3.fc1.bias' is missing"),
        ({"n_experts": 2}, "unknown tensor 'moe_layers.0.experts.2.fc1.bias'"),
        ({"n_layers": 1}, "unknown tensor 'moe_layers.1.experts.0.fc1.bias'"),
        ({"d_ff": 13}, r"has shape \[12\], expected \[13\]"),
        ({"vocab_size": 41}, r"has shape \[40, 8\], expected \[41, 8\]"),
        ({"top_k": 4}, "top_k: 4 is more than n_experts 3"),
        ({"n_layers": 1024, "n_experts": 4096}, "has 61 tensors, too few for n_layers 1024 x n_experts 4096"),
    ],
)
def test_a_configuration_that_is_not_the_tensors(
    source: Path, dest: Path, sizes: dict[str, int], reason: str
) -> None:
    config = source_config(TINY)
    config["model"] |= sizes
    torch.save({"model_state_dict": state_dict(TINY), "config": config}, source / "model.pt")
    refuse(source / "model.pt", dest, reason)


def test_a_duplicate_key_in_a_safetensors_file(source: Path, dest: Path) -> None:
    write_config(source, TINY)
    path = write_safetensors(source, state_dict(TINY), dropped=HEAD)
    data = path.read_bytes()
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    twice = header.replace(b'"moe_layers.0.experts.0.norm.bias"', b'"moe_layers.0.experts.1.norm.bias"')
    path.write_bytes(data.replace(header, twice, 1))
    refuse(path, dest, "assembled_model.safetensors: .*duplicate key 'moe_layers.0.experts.1.norm.bias'")


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_safetensors_file_cut_short(source: Path, dest: Path, cut: int) -> None:
    write_config(source, TINY)
    path = write_safetensors(source, state_dict(TINY), dropped=HEAD)
    path.write_bytes(path.read_bytes()[:cut])
    refuse(path, dest, r"assembled_model\.safetensors: ")


@pytest.mark.parametrize(
    "name", ["model.pt", "assembled_model.safetensors", "shared_components.pt", "expert_1.pt"]
)
def test_pickled_code_does_not_run(source: Path, dest: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    write_parts(source, TINY, state_dict(TINY))
    for data in (pickle.dumps(Evil(marker)), pickle.dumps({"model_state_dict": Evil(marker)})):
        (source / name).write_bytes(data)
        is_part = name.startswith(("shared", "expert"))
        options = {"router": "uniform"} if is_part else {}
        refuse(source if is_part else source / name, dest, f"{name}: ", **options)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "expected a state dict, got list"),
        ({"model_state_dict": 7, "config": source_config(TINY)}, "expected a state dict, got int"),
        ({"model_state_dict": {"a": 7}, "config": source_config(TINY)}, "'a' is not a dense tensor"),
        ({"model_state_dict": {7: torch.ones(1)}, "config": source_config(TINY)}, "name is of type int"),
        ({"model_state_dict": {}, "config": "x"}, "config: expected a mapping, got str"),
        ({"model_state_dict": {}, "config": {}}, "config: has no section 'model'"),
        ({"model_state_dict": {}, "config": source_config(TINY)}, "has 0 tensors, too few"),
        (expert_part(TINY, state_dict(TINY), 0), "is one expert; give the folder"),
        ({}, r"source: has no config\.yaml"),
    ],
)
def test_a_torch_file_that_is_no_model(source: Path, dest: Path, content: object, reason: str) -> None:
    torch.save(content, source / "model.pt")
    refuse(source / "model.pt", dest, reason)


def _edit_expert(folder: Path, **changes: object) -> None:
    torch.save(expert_part(TINY, state_dict(TINY), 1) | changes, folder / "expert_1.pt")


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (
            lambda folder: (folder / "expert_1.pt").unlink(),
            r"source: expert_1\.pt is missing, n_experts is 3",
        ),
        (
            lambda folder: shutil.copy(folder / "expert_1.pt", folder / "expert_3.pt"),
            r"expert_3\.pt is one too many",
        ),
        (
            lambda folder: shutil.copy(folder / "expert_1.pt", folder / "expert_01.pt"),
            r"expert_01\.pt is one too",
        ),
        (
            lambda folder: shutil.copy(folder / "expert_0.pt", folder / "expert_1.pt"),
            r"expert_1\.pt: expert_idx is 0",
        ),
        (lambda folder: _edit_expert(folder, expert_idx=True), r"expert_1\.pt: expert_idx is True"),
        (lambda folder: _edit_expert(folder, config=None), r"expert_1\.pt: has no 'config'"),
        (lambda folder: _edit_expert(folder, config={"d_model": 9}), r"expert_1\.pt: config: d_model is 9"),
        (lambda folder: _edit_expert(folder, experts_state_dict={}), r"'0\.fc1\.bias' is missing"),
        (lambda folder: torch.save({}, folder / "expert_1.pt"), r"expert_1\.pt: has no 'experts_state_dict'"),
        (
            lambda folder: torch.save({}, folder / "shared_components.pt"),
            r"shared_components\.pt: tensor 'shared\.",
        ),
        (lambda folder: (folder / "config.yaml").unlink(), r"source: has no config\.yaml"),
        (
            lambda folder: (folder / "shared_components.pt").unlink(),
            r"source: is a ModularForge output without its shared_components\.pt",
        ),
    ],
)
def test_bad_parts(source: Path, dest: Path, corrupt: Callable[[Path], object], reason: str) -> None:
    write_parts(source, TINY, state_dict(TINY))
    corrupt(source)
    refuse(source, dest, reason, router="uniform")


def test_parts_need_a_router_and_nothing_else_takes_one(source: Path, dest: Path) -> None:
    write_parts(source, TINY, state_dict(TINY))
    refuse(source, dest, "parts have no router: give --router uniform, kaiming or a file")
    alone = source / "alone"
    alone.mkdir()
    path = write_assembled(alone, TINY, state_dict(TINY))
    for given in (path, alone):
        refuse(given, dest, r"has its own router", router="uniform")


def test_a_tokenizer_that_is_not_this_models(source: Path, dest: Path) -> None:
    path = write_assembled(source, TINY, state_dict(TINY))
    shutil.copy(GOLDEN / "tokenizer.json", source)
    with pytest.raises(TokenizerError, match="vocab_size is 40"):
        run(path, dest)
    assert not dest.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent", "no such file"), ("notes.txt", "is an empty file"), ("empty", "is an empty folder")],
)
def test_a_source_that_is_none(source: Path, dest: Path, name: str, reason: str) -> None:
    (source / "notes.txt").touch()
    (source / "empty").mkdir()
    refuse(source / name, dest, f"{name}: {reason}")


def test_our_own_checkpoint_is_no_source(source: Path, dest: Path) -> None:
    refuse(write_checkpoint(source / "ours"), dest, "ours: is a checkpoint of ours already")


def test_the_destination_is_looked_at_first(source: Path, dest: Path) -> None:
    dest.mkdir()
    refuse(source / "absent", dest, "new: exists already")
    refuse(source / "absent", dest, "absent: no such file", force=True)
    path = write_assembled(source, TINY, state_dict(TINY))
    run(path, dest, force=True)
    Checkpoint.open(dest).verify()
