"""Each family out again: what is exported is what transformers wrote, and a random model of it is served."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from moe_model import AssembledModel
from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.initialise import initialise_like
from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from tests.families.case import logits_of
from tests.families.cases import CASES
from tests.families.ours import imported
from tests.families.test_transformers import TOLERANCE, VARIANTS, random_ids


def loaded(folder: Path) -> transformers.PreTrainedModel:
    """Every tensor of the folder is used, and none is missing."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    model.set_experts_implementation("eager")
    return model.eval()


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_model_leaves_as_it_came(name: str, variant: str, tmp_path: Path) -> None:
    """Into our own format and out of it: config, dtypes, tensors; in many files."""
    model = CASES[name].make_model(variant)
    ours = imported(CASES[name].write(model, tmp_path / "source"), tmp_path)
    export_checkpoint(ours, tmp_path / "left", ExportOptions(shard_bytes=40_000))
    assert len(list((tmp_path / "left").glob("model-*.safetensors"))) > 1
    again = loaded(tmp_path / "left")
    found, expected = again.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    opened = Checkpoint.open(tmp_path / "left")
    assert (opened.config, opened.generation) == (ours.config, ours.generation)


@pytest.mark.parametrize("name", CASES)
def test_a_random_model_is_the_same_for_transformers(name: str, tmp_path: Path) -> None:
    """Of another's config.json: in our own format, and as the folder that leaves it; logits are equal."""
    case = CASES[name]
    config = config_like(case.write(case.make_model(), tmp_path / "source"))
    initialise_like(tmp_path / "ours", RandomModel(config, seed=3))
    export_checkpoint(Checkpoint.open(tmp_path / "ours"), tmp_path / "left")
    ids_BS = random_ids(case)
    expected_BSV = logits_of(loaded(tmp_path / "left"), ids_BS)
    for folder in ("ours", "left"):
        logits_BSV, _ = AssembledModel.from_checkpoint(tmp_path / folder).forward(ids_BS)
        assert float((logits_BSV - expected_BSV).abs().max() / expected_BSV.abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_the_first_layers_alone(name: str, tmp_path: Path) -> None:
    """All but the last; what is said of each layer is said of fewer."""
    case = CASES[name]
    source = case.write(case.make_model(), tmp_path)
    whole = config_like(source)
    cut = config_like(source / "config.json", whole.n_layers - 1)
    dense = tuple(layer for layer in whole.dense_layers if layer < cut.n_layers)
    assert (cut.n_layers, cut.dense_layers) == (whole.n_layers - 1, dense)
    assert replace(cut, n_layers=whole.n_layers, dense_layers=whole.dense_layers, own=whole.own) == whole
