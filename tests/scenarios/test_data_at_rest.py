"""Scenarios E1 to E6 and E9: a broken or hostile checkpoint or source is refused at the start, and named."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from coordinator.server.main import open_server
from tests.moe_model.corruptions import (
    change_tensors,
    edit_manifest,
    flip_last_bit,
    repeat_key,
    replace_by_link,
    resum,
)
from tests.moe_model.source_files import (
    TINY,
    source_config,
    state_dict,
    write_config,
    write_parts,
    write_safetensors,
)
from tests.scenarios.starting import command_refuses, config_of, refusal_of
from tests.scenarios.watching import watched

SHARED = "shared.safetensors"
EXPERT = "experts/layer_0001/expert_0002.safetensors"
HEAD = "shared.lm_head.weight"
# A refusal costs what reading a small model costs, whatever a file claims.
QUICK = 1.0


# E1: an expert is missing.


async def test_e1_a_missing_expert_is_named_at_the_start(folder: Path) -> None:
    await started(folder)
    (folder / EXPERT).unlink()
    started_at = time.monotonic()
    assert f"{EXPERT}: No such file" in await refusal_of(folder)
    assert time.monotonic() - started_at < QUICK


async def test_e1_an_expert_missing_from_the_manifest_is_named(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].pop(EXPERT))
    assert f"files: '{EXPERT}' is missing" in await refusal_of(folder)


def test_e1_an_expert_missing_from_a_source_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parts(source, TINY, state_dict(TINY))
    (source / "expert_2.pt").unlink()
    line = command_refuses(capsys, "import", source, tmp_path / "new", "--router", "uniform")
    assert "expert_2.pt is missing, n_experts is 3" in line
    assert not (tmp_path / "new").exists()


async def started(folder: Path) -> None:
    """What is broken next was whole before."""
    async with open_server(config_of(folder)):
        pass


# E2: a file that is missing, or whose name or link leads out of the folder.


def _rename(name: str) -> Callable[[Path], object]:
    def rename(folder: Path) -> None:
        edit_manifest(folder, lambda m: m["files"].update({name: m["files"].pop(EXPERT)}))
        outside = (folder / name).resolve()
        outside.parent.mkdir(parents=True, exist_ok=True)
        (folder / EXPERT).rename(outside)

    return rename


def _link(name: str) -> Callable[[Path], object]:
    return lambda folder: replace_by_link(folder / name, folder.parent / "outside")


OUTSIDE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing file": (lambda folder: (folder / SHARED).unlink(), f"{SHARED}: No such file"),
    "..": (_rename("../outside"), f"files: '{EXPERT}' is missing"),
    "further ..": (_rename("experts/../../outside"), f"files: '{EXPERT}' is missing"),
    "an absolute name": (lambda folder: _rename(f"{folder.parent}/outside")(folder), "is missing"),
    "a link": (_link(EXPERT), f"{EXPERT}: is a symbolic link"),
    "a link to a folder": (_link("experts/layer_0001"), "layer_0001: is not a folder"),
    "a link in place of the manifest": (_link("manifest.json"), "manifest.json: is a symbolic link"),
}


@pytest.mark.parametrize("kind", OUTSIDE)
async def test_e2_nothing_outside_the_folder_is_ever_opened(folder: Path, kind: str) -> None:
    corrupt, reason = OUTSIDE[kind]
    corrupt(folder)
    outside = folder.parent / "outside"
    assert outside.exists() == (kind != "a missing file"), "what was asked for is there, and right"
    with watched() as heard:
        assert reason in await refusal_of(folder)
    opened = [os.path.realpath(path) for event, path in heard if event == "open"]
    assert any(path.startswith(str(folder)) for path in opened) or kind.endswith("manifest"), "it watches"
    assert not [path for path in opened if path.startswith(str(outside))]


# E3: a tensor that is in two files.


async def test_e3_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    stolen = safetensors.torch.load((folder / SHARED).read_bytes())["output_norm.weight"]
    change_tensors(folder / EXPERT, lambda tensors: tensors.update({"output_norm.weight": stolen}))
    resum(folder, EXPERT)
    assert f"{EXPERT}: unknown tensor 'output_norm.weight'" in await refusal_of(folder)


async def test_e3_an_expert_under_two_names_is_refused(folder: Path) -> None:
    again = EXPERT.replace("0002.s", "0003.s")
    (folder / again).write_bytes((folder / EXPERT).read_bytes())
    resum(folder, again)
    assert f"files: unknown name '{again}'" in await refusal_of(folder)


# E4: tensors that are not what the configuration says.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.to(torch.int32), "tensor 'fc1.weight' has dtype 'I32', expected 'F32'"),
        (lambda t: t.t().contiguous(), "tensor 'fc1.weight' has shape [8, 12], expected [12, 8]"),
        (lambda t: t.view(-1), "tensor 'fc1.weight' has shape [96], expected [12, 8]"),
    ],
    ids=["dtype", "transposed", "flat"],
)
async def test_e4_a_wrong_dtype_or_shape_is_named(
    folder: Path, change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    change_tensors(folder / EXPERT, lambda t: t.update({"fc1.weight": change(t["fc1.weight"])}))
    resum(folder, EXPERT)
    assert f"{EXPERT}: {reason}" in await refusal_of(folder)


@pytest.mark.parametrize("size", ["d_ff", "d_model"])
async def test_e4_a_configuration_of_another_model_is_refused(folder: Path, size: str) -> None:
    edit_manifest(folder, lambda manifest: manifest["model"].update({size: 2 * manifest["model"][size]}))
    assert "bytes do not fit the model" in await refusal_of(folder)


# E5: keys that are there twice.


async def test_e5_duplicate_keys_are_refused(folder: Path) -> None:
    repeat_key(folder / EXPERT, '"fc1.bias":{"dtype":"U8","shape":[48],"data_offsets":[0,48]},')
    resum(folder, EXPERT)
    taken = safetensors.torch.load((folder / EXPERT).read_bytes())
    assert taken["fc1.bias"].dtype == torch.float32, "the library takes the last"
    assert f"{EXPERT}: safetensors header: duplicate key 'fc1.bias'" in await refusal_of(folder)


async def test_e5_duplicate_keys_of_a_manifest_are_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"top_k": 2', '"top_k": 2, "top_k": 1', 1))
    assert json.loads(path.read_text())["model"]["top_k"] == 1, "the last one would win"
    assert "duplicate key 'top_k'" in await refusal_of(folder)


def test_e5_duplicate_keys_of_a_source_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_safetensors(source, state_dict(TINY), dropped=HEAD)
    write_config(source, TINY)
    first, second = (f'"moe_layers.0.experts.{expert}.norm.bias"'.encode() for expert in (0, 1))
    path.write_bytes(path.read_bytes().replace(first, second, 1))
    line = command_refuses(capsys, "import", path, tmp_path / "new")
    assert "duplicate key 'moe_layers.0.experts.1.norm.bias'" in line


# E6: data that has changed.


@pytest.mark.parametrize("name", [SHARED, EXPERT])
async def test_e6_a_flipped_bit_is_refused(folder: Path, name: str) -> None:
    flip_last_bit(folder / name)
    safetensors.torch.load((folder / name).read_bytes())  # which the library takes
    assert f"{name}: SHA-256 is not the manifest's" in await refusal_of(folder)


# E9: a configuration that is hostile.

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "many experts": ({"n_experts": 10**9}, "n_experts: 1000000000 is not in [1, 4096]"),
    "most experts": ({"n_experts": 4096, "n_layers": 1024}, ""),
    "another name": ({"num_experts": 10**9}, "unknown key 'num_experts'"),
    "negative": ({"d_model": -64}, "d_model: -64 is not in"),
    "no heads": ({"n_heads": 0}, "n_heads: 0 is not in"),
    "top_k": ({"top_k": 4}, "top_k: 4 is more than n_experts 3"),
    "eps": ({"norm_eps": float("nan")}, "NaN"),
    "infinite": ({"d_ff": float("inf")}, "Infinity"),
    "auto_map": ({"auto_map": {"AutoModel": "evil.Model"}}, "unknown key 'auto_map'"),
    "a list": ({"d_model": [64] * 1000}, "d_model: expected"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_e9_a_hostile_configuration_is_refused(folder: Path, kind: str) -> None:
    change, reason = HOSTILE[kind]
    edit_manifest(folder, lambda manifest: manifest["model"].update(change))
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    started_at = time.monotonic()
    with watched() as heard:
        message = await refusal_of(folder)
    assert time.monotonic() - started_at < QUICK
    assert (reason or "is missing") in message
    assert ("open", f"{folder}/manifest.json") in heard, "it was looked at"
    assert not [found for found in heard if "evil" in found[1]]


@pytest.mark.parametrize("kind", HOSTILE)
def test_e9_a_hostile_source_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, reason = HOSTILE[kind]
    config = source_config(TINY)
    config["model"] |= change
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text("raise SystemExit('imported')")
    path = write_safetensors(source, state_dict(TINY), dropped=HEAD)
    started_at = time.monotonic()
    with watched() as heard:
        arguments = ("import", path, tmp_path / "new", "--config", source / "config.json")
        line = command_refuses(capsys, *arguments)
    assert time.monotonic() - started_at < QUICK
    assert (reason or "too few for n_layers 1024 x n_experts 4096") in line
    assert not [found for found in heard if "evil" in found[1]]
    assert not (tmp_path / "new").exists()
