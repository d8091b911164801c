"""An export as a whole: what is refused, what texts come along, that nothing is left of one that fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.exporter.job import config_json
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.checkpoint.importer import import_checkpoint
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families.ernie4_5_moe.config import ErnieConfig
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.layers.specs import RotaryScaling
from tests.moe_model.checkpoint.hugging_face.written import CONFIG, make_tensors, write_folder, write_json
from tests.moe_model.text.test_byte_fallback import LIBRARY

MIXTRAL = ModelConfig(
    family="mixtral",
    d_model=8,
    n_heads=2,
    n_layers=2,
    d_ff=6,
    n_experts=3,
    vocab_size=600,
    max_seq_len=16,
    own=MixtralConfig(),
)
SCALINGS = (
    RotaryScaling("linear", 2.5),
    RotaryScaling("llama3", 8.0, 40, 1.5, 5.0),
    RotaryScaling("yarn", 4.0, 40, 1.0, 32.0, truncate=False, attention_factor=1.25),
)


def test_modularforge_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="family: modularforge has no Hugging Face folders"):
        export_checkpoint(Checkpoint.open(tiny_checkpoint), tmp_path / "left")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    with pytest.raises(CheckpointError, match=r"left: exists already; an export replaces nothing"):
        export_checkpoint(RandomModel(MIXTRAL), tmp_path / "left")


def test_nothing_is_left_of_one_that_fails(tmp_path: Path) -> None:
    class Broken(RandomModel):
        def read_expert(
            self, layer: int, expert: int, dtype: torch.dtype | None = None
        ) -> dict[str, torch.Tensor]:
            raise CheckpointError("the disk is gone")

    with pytest.raises(CheckpointError, match="the disk is gone"):
        export_checkpoint(Broken(MIXTRAL), tmp_path / "left")
    assert list(tmp_path.iterdir()) == []


def test_the_dtype_is_that_which_is_asked_for(tmp_path: Path) -> None:
    model = RandomModel(MIXTRAL, seed=1)
    export_checkpoint(model, tmp_path / "left", ExportOptions(torch.bfloat16))
    left = Checkpoint.open(tmp_path / "left")
    assert left.dtype == torch.bfloat16
    name = "gate.weight"
    assert torch.equal(left.read_expert(1, 2)[name], model.read_expert(1, 2)[name].bfloat16())
    assert json.loads((tmp_path / "left" / "config.json").read_bytes())["dtype"] == "bfloat16"


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_positions_are_said_as_they_are_read(scaling: RotaryScaling) -> None:
    """config_json reads what it has written, and refuses what would come back as something else."""
    config = replace(MIXTRAL, own=MixtralConfig(rope_scaling=scaling))
    found = config_json(config, GenerationDefaults(), torch.float32)
    assert found["rope_parameters"]["factor"] == scaling.factor


def test_what_no_config_says_is_refused() -> None:
    """Dense layers that no start, end and interval give."""
    config = replace(
        *(MIXTRAL,), family="ernie4_5_moe", n_layers=5, dense_layers=(1, 2), own=ErnieConfig(shared_width=6)
    )
    with pytest.raises(ConfigError, match=r"dense_layers \[1, 2\] cannot be said in a config.json of ernie"):
        config_json(config, GenerationDefaults(), torch.float32)


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("more", [True, False])
def test_texts_come_along(default: bool, more: bool, tmp_path: Path) -> None:
    """What is read of the folder that leaves is what was read of the one that came; transformers agrees."""
    wide = {name: torch.randn(600, 8) if len(each) == 20 else each for name, each in make_tensors().items()}
    source = write_folder(tmp_path / "source", wide, {**CONFIG, "vocab_size": 600})
    (source / "tokenizer.json").write_text(LIBRARY.to_str(), encoding="utf-8")
    templates = [{"name": "default", "template": "{{ 1 }}"}] if default else []
    templates += [{"name": "tool_use", "template": "{{ 2 }}"}] if more else []
    texts = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "chat_template": templates}
    texts["extra_special_tokens"] = {"end_of_image": "</s>"}
    write_json(source / "tokenizer_config.json", texts)
    sampling = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "eos_token_id": [2, 5], "pad_token_id": 0}
    write_json(source / "generation_config.json", sampling)
    import_checkpoint(source, tmp_path / "ours")
    ours = Checkpoint.open(tmp_path / "ours")
    export_checkpoint(ours, tmp_path / "left")
    left = Checkpoint.open(tmp_path / "left")
    assert left.generation == ours.generation
    assert left.generation.eos_token_ids == (2, 5)
    assert left.read_tokenizer() == LIBRARY.to_str().encode()
    assert left.read_tokenizer_settings() == ours.read_tokenizer_settings()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "left")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer("the in").input_ids == LIBRARY.encode("the in").ids
    if default:
        assert tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False) == "1"
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "left")
    assert (theirs.temperature, theirs.top_k, theirs.top_p, theirs.do_sample) == (0.5, 7, 0.75, True)


def test_greedy_by_default_stays_so(tmp_path: Path) -> None:
    model = RandomModel(MIXTRAL)
    model.generation = GenerationDefaults(temperature=0.0)
    export_checkpoint(model, tmp_path / "left")
    assert Checkpoint.open(tmp_path / "left").generation == model.generation
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "left").do_sample is False
