"""Where others went wrong with these families: each rule by a test that fails when it is broken.

The rest is in the logits of test_transformers.py: both effects of yarn ("yarn of one kind" and the others),
pairs ("halves turn"), a half of each head that turns though the config does not say so (GLM-4.5's base).
Shapes: R rows, E experts.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_model import AssembledModel
from moe_model.checkpoint.importer import ImportOptions, import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, UserError
from moe_model.families import family_of
from tests.families.case import Case, logits_of
from tests.families.cases import CASES

TOLERANCE = 1e-4
CORRECTED = ("deepseek_v3", "glm4_moe")
IDS_BS = torch.randint(3, 311, (2, 40), generator=torch.Generator().manual_seed(1))


def write(case: Case, folder: Path, model: Any) -> Path:
    """In one file, so that a test can change it."""
    return case.write(model, folder / "source", max_shard_size="1GB")


def edit(source: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """Changes tensors and config of a folder of one file."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    change(tensors, config)
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")


def error_of(source: Path, model: Any) -> float:
    """Of our logits, by the largest of transformers'."""
    logits_BSV, _ = AssembledModel.from_checkpoint(source).forward(IDS_BS)
    expected_BSV = logits_of(model, IDS_BS)
    return float((logits_BSV - expected_BSV).abs().max() / expected_BSV.abs().max())


@pytest.mark.parametrize("name", CORRECTED)
@pytest.mark.parametrize("kind", ["large", "below zero"])
def test_a_correction_chooses_and_does_not_weigh(name: str, kind: str, tmp_path: Path) -> None:
    """Of GLM-4.5 they reach 35; where all scores with them are below 0, experts of groups that are not kept
    must not come in as zeros."""
    case = CASES[name]
    model = case.make_model("groups" if name == "glm4_moe" else "")
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("e_score_correction_bias"):
                tensor.copy_(20 + 15 * tensor if kind == "large" else tensor - 3)
    assert error_of(write(case, tmp_path, model), model) < TOLERANCE


@pytest.mark.parametrize("name", CORRECTED)
def test_a_correction_is_float32_in_every_file_of_ours(name: str, tmp_path: Path) -> None:
    """A folder of bfloat16, its import as bfloat16, and what is loaded of both."""
    case = CASES[name]
    source = write(case, tmp_path, case.make_model())

    def narrow(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["dtype"] = "bfloat16"
        for key, tensor in tensors.items():
            if not key.endswith("e_score_correction_bias"):
                tensors[key] = tensor.bfloat16()

    edit(source, narrow)
    import_checkpoint(source, tmp_path / "ours", ImportOptions(dtype=torch.bfloat16))
    theirs = load_file(source / "model.safetensors")
    for path in (source, tmp_path / "ours"):
        checkpoint = Checkpoint.open(path)
        tensors = checkpoint.read_shared(torch.bfloat16)
        names = family_of(checkpoint.config).float32_names(checkpoint.config)
        assert len(names) == len(checkpoint.config.moe_layers)
        for ours in names:
            layer = ours.split(".")[1]
            exact = theirs[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
            assert not torch.equal(exact, exact.bfloat16().float()), "corrections that bfloat16 can say"
            assert torch.equal(tensors[ours], exact)


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_layers_that_predict_further_tokens_are_left_out(name: str, tmp_path: Path) -> None:
    """They have a number that is not one of the model's, and tensors of its layers and others."""
    case = CASES[name]
    model = case.make_model()
    source = write(case, tmp_path, model)
    num_tensors = len(load_file(source / "model.safetensors"))

    def predict(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        last, beyond = config["num_hidden_layers"] - 1, f"model.layers.{config['num_hidden_layers']}"
        for key in [key for key in tensors if key.startswith(f"model.layers.{last}.")]:
            tensors[key.replace(f"model.layers.{last}", beyond)] = torch.full_like(tensors[key], 9.0)
        for part in ("eh_proj", "enorm", "hnorm", "shared_head.norm", "shared_head.head", "embed_tokens"):
            tensors[f"{beyond}.{part}.weight"] = torch.full((3, 5), 9.0)
        config["num_nextn_predict_layers"] = 1

    edit(source, predict)
    assert len(load_file(source / "model.safetensors")) > num_tensors + 20
    checkpoint = Checkpoint.open(source)
    assert checkpoint.config.n_layers == 3
    assert any("predict further tokens are not used" in note for note in checkpoint.notes)
    assert error_of(source, model) < TOLERANCE
    # One layer more than the config says.
    edit(source, lambda tensors, _config: tensors.update({"model.layers.4.enorm.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"unknown tensor 'model\.layers\.4\.enorm\.weight'"):
        Checkpoint.open(source)


def test_the_width_of_a_head_is_not_what_newer_files_call_so(tmp_path: Path) -> None:
    """`head_dim` of a DeepSeek is what turns of a head; another value of it changes nothing."""
    case = CASES["deepseek_v3"]
    model = case.make_model()
    source = write(case, tmp_path, model)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert (config["head_dim"], config["qk_head_dim"]) == (6, 16)
    assert Checkpoint.open(source).config.head_dim == 16
    edit(source, lambda _tensors, config: config.update(head_dim=64))
    assert error_of(source, model) < TOLERANCE


@pytest.mark.parametrize("model_type", ["kimi_k25", "glm4v_moe"])
def test_a_model_within_another_is_refused_by_its_type(model_type: str, tmp_path: Path) -> None:
    case = CASES["kimi_k2"]
    source = write(case, tmp_path, case.make_model())

    def wrap(_tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        inner = dict(config)
        config.clear()
        config |= {"model_type": model_type, "text_config": inner}

    edit(source, wrap)
    with pytest.raises(UserError, match=f"model_type {model_type}; this version serves .*kimi_k2"):
        Checkpoint.open(source)


BLOCK = (16, 8)


def fp8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 values and one scale for each block; the last blocks are smaller than the others."""
    rows, columns = weight_OI.shape
    grid = torch.empty(-(-rows // BLOCK[0]), -(-columns // BLOCK[1]))
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            place = slice(i * BLOCK[0], (i + 1) * BLOCK[0]), slice(j * BLOCK[1], (j + 1) * BLOCK[1])
            grid[i, j] = weight_OI[place].abs().max() / 448
            values[place] = (weight_OI[place] / grid[i, j]).to(torch.float8_e4m3fn)
    return values, grid


@pytest.mark.parametrize("name", ["deepseek_v3", "kimi_k2"])
def test_weights_of_eight_bits_with_scales_of_blocks(name: str, tmp_path: Path) -> None:
    """As DeepSeek-V3 is published. 28 rows of the product into the latent are one block and 3/4 of one."""
    case = CASES[name]
    model = case.make_model()
    source = write(case, tmp_path, model)
    values_by_name: dict[str, tuple[Tensor, Tensor]] = {}

    def quantise(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for key in [key for key in tensors if key.endswith("_proj.weight") or "kv_a_proj" in key]:
            values_by_name[key] = fp8(tensors[key])
            tensors[key], tensors[f"{key}_scale_inv"] = values_by_name[key]
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(BLOCK),
        }

    edit(source, quantise)
    kv_down = values_by_name["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
    assert [tuple(part.shape) for part in kv_down] == [(28, 42), (2, 6)]
    exact = {}
    for key, (values, grid) in values_by_name.items():
        wide = grid.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
        exact[key] = values.float() * wide[: values.shape[0], : values.shape[1]]
    rounded = write(case, tmp_path / "rounded", model)
    edit(rounded, lambda tensors, _config: tensors.update(exact))
    found = type(model).from_pretrained(rounded, attn_implementation="eager", dtype=torch.float32).eval()
    found.set_experts_implementation("eager")
    assert error_of(source, found) < TOLERANCE
    assert error_of(source, model) > TOLERANCE, "8 bits that round nothing show nothing"
