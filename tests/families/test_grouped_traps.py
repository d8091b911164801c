"""Where others went wrong with families of grouped-query attention: rules, and what sees them broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from tests.families.case import logits_of
from tests.families.cases import CASES
from tests.families.test_transformers import TOLERANCE

Json = dict[str, Any]
IDS_BS = torch.randint(3, 311, (2, 60), generator=torch.Generator().manual_seed(1))


class Folder:
    """Of one case, in one file, so that a test can change it; with what transformers says of it."""

    def __init__(self, name: str, variant: str, path: Path) -> None:
        case = CASES[name]
        model = case.make_model(variant)
        self.path = case.write(model, path, max_shard_size="1GB")
        self.expected_BSV = logits_of(model, IDS_BS).log_softmax(-1)

    def change_config(self, change: Callable[[Json], Any]) -> None:
        path = self.path / "config.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")

    def change_tensors(self, change: Callable[[dict[str, Tensor]], Any]) -> None:
        path = self.path / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    @property
    def error(self) -> float:
        """Of our log probabilities, by the largest of transformers'."""
        logits_BSV, _ = AssembledModel.from_checkpoint(self.path).forward(IDS_BS)
        difference = (logits_BSV.log_softmax(-1) - self.expected_BSV).abs().max()
        return float(difference / self.expected_BSV.abs().max())


# Case, variant, key, and a value that would be right if the rule were another one.
RULES = [
    # A window counts the token itself.
    *[(name, "window", "sliding_window", value) for name in ("mixtral", "qwen3_moe") for value in (8, 10)],
    ("qwen2_moe", "window", "sliding_window", 10),
    # It is in every second one of the layers before this one.
    ("qwen2_moe", "window", "max_window_layers", 2),
    ("mixtral", "window", "sliding_window", None),
    ("qwen3_moe", "window", "use_sliding_window", False),
    # Weights add up to 1 only where the config says so.
    ("qwen3_moe", "", "norm_topk_prob", False),
    ("qwen2_moe", "", "norm_topk_prob", True),
    ("olmoe", "", "norm_topk_prob", True),
    # Granite's scale is no 1/√d, both branches are multiplied, logits divided: greedy tokens cannot see it.
    ("granitemoe", "", "attention_multiplier", 8**-0.5),
    ("granitemoe", "", "residual_multiplier", 1.0),
    ("granitemoe", "", "embedding_multiplier", 1.0),
    ("granitemoe", "", "logits_scaling", 1.0),
    ("granitemoe", "", "logits_scaling", 1 / 2.5),
    # Values are clamped as queries and keys are.
    ("olmoe", "", "clip_qkv", None),
    ("qwen3_moe", "", "rms_norm_eps", 1e-2),
]


@pytest.mark.parametrize(("name", "variant", "key", "wrong"), RULES)
def test_a_value_of_the_config_shows_in_the_numbers(
    name: str, variant: str, key: str, wrong: object, tmp_path: Path
) -> None:
    folder = Folder(name, variant, tmp_path)
    assert folder.error < TOLERANCE

    def change(data: Json) -> None:
        assert data[key] != wrong
        data[key] = wrong
        if key in ("max_window_layers", "use_sliding_window"):
            data.pop("layer_types", None)

    folder.change_config(change)
    assert folder.error > 5 * TOLERANCE


ROPES = ["yarn", "yarn by hand", "llama3", "linear"]


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_both_spellings_of_positions_are_read(name: str, kind_key: str, tmp_path: Path) -> None:
    """The prompt is longer than what the model was first trained with, as far as it says so."""
    folder = Folder("qwen3_moe", name, tmp_path)
    expected = Checkpoint.open(folder.path).config

    def age(data: Json) -> None:
        rope = data.pop("rope_parameters")
        data["rope_theta"] = rope.pop("rope_theta")
        data["rope_scaling"] = {kind_key: rope.pop("rope_type"), **rope}

    folder.change_config(age)
    assert Checkpoint.open(folder.path).config == expected
    assert folder.error < TOLERANCE
    folder.change_config(lambda data: data.pop("rope_scaling"))
    assert folder.error > 5 * TOLERANCE


@pytest.mark.parametrize("name", ["olmoe", "flex_olmo"])
def test_a_norm_is_over_all_heads_of_a_row(name: str, tmp_path: Path) -> None:
    """Norms of single heads with the same weights would give other numbers."""
    folder = Folder(name, "", tmp_path)
    config = Checkpoint.open(folder.path).config
    shapes = family_of(config).shared_shapes(config)
    assert shapes["blocks.0.q_norm.weight"] == (48,)
    assert shapes["blocks.0.k_norm.weight"] == (16,)
    assert folder.error < TOLERANCE


def test_the_norms_of_flex_olmo_come_after(tmp_path: Path) -> None:
    """The name that others have for the norm before the experts is of the one after attention."""
    folder = Folder("flex_olmo", "", tmp_path)
    assert folder.error < TOLERANCE
    layer = "model.layers.1"
    norms = [f"{layer}.post_{part}_layernorm.weight" for part in ("attention", "feedforward")]

    def swap(tensors: dict[str, Tensor]) -> None:
        tensors[norms[0]], tensors[norms[1]] = tensors[norms[1]], tensors[norms[0]]

    folder.change_tensors(swap)
    assert folder.error > 5 * TOLERANCE
    before = {f"{layer}.input_layernorm.weight": torch.ones(48)}
    folder.change_tensors(lambda tensors: tensors.update(before))
    with pytest.raises(CheckpointError, match="input_layernorm"):
        Checkpoint.open(folder.path)


def test_a_head_that_is_not_there_is_no_tie(tmp_path: Path) -> None:
    folder = Folder("granitemoe", "not tied", tmp_path)
    folder.change_tensors(lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        Checkpoint.open(folder.path)


def test_a_tied_head_may_be_there_once_more(tmp_path: Path) -> None:
    folder = Folder("granitemoe", "", tmp_path)
    tied = {"lm_head.weight": load_file(folder.path / "model.safetensors")["model.embed_tokens.weight"]}
    folder.change_tensors(lambda tensors: tensors.update(tied))
    assert folder.error < TOLERANCE
    folder.change_tensors(lambda tensors: tensors.update({"lm_head.weight": tied["lm_head.weight"] + 1}))
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from the embedding"):
        AssembledModel.from_checkpoint(folder.path)
