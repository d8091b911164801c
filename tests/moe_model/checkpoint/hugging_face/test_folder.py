"""Hugging Face folders: what is read, what is refused by name, and that nothing is written then."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_model import ModelConfig
from moe_model.checkpoint.importer import ImportOptions, import_checkpoint
from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, ConfigError, ExpertMeshError, TokenizerError
from moe_model.families.mixtral.config import MixtralConfig
from tests.moe_model.checkpoint.hugging_face.written import CONFIG, make_tensors, write_folder, write_json
from tests.moe_model.text.test_byte_fallback import LIBRARY

TENSORS = make_tensors()
EXPERT = "model.layers.1.block_sparse_moe.experts.2"
OLD = {
    "rope_parameters": None,
    "rope_theta": 1e4,
    "rope_scaling": None,
    "torch_dtype": "float32",
    "dtype": None,
}


def imported(tmp_path: Path, source: Path) -> Checkpoint:
    import_checkpoint(source, tmp_path / "ours")
    return Checkpoint.open(tmp_path / "ours")


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("spelling", [{}, OLD])
def test_names_sizes_and_tensors(shards: int, spelling: dict[str, Any], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS, {**CONFIG, **spelling}, shards=shards)
    checkpoint = imported(tmp_path, source)
    assert checkpoint.config == ModelConfig(
        family="mixtral",
        d_model=8,
        n_heads=3,
        n_layers=2,
        d_ff=6,
        n_experts=3,
        top_k=2,
        vocab_size=20,
        max_seq_len=16,
        tie_embedding=False,
        n_kv_heads=1,
        head_dim=4,
        own=MixtralConfig(norm_eps=1e-6, rope_theta=1e4),
    )
    expert = checkpoint.read_expert(1, 2)
    for ours, theirs in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        assert torch.equal(expert[f"{ours}.weight"], TENSORS[f"{EXPERT}.{theirs}.weight"])
    shared = checkpoint.read_shared()
    assert torch.equal(shared["head.weight"], TENSORS["lm_head.weight"])
    assert torch.equal(shared["blocks.1.k.weight"], TENSORS["model.layers.1.self_attn.k_proj.weight"])
    checkpoint.verify()


def test_what_is_absent_has_the_default_of_the_authors(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("rms_norm_eps", "rope_parameters")}
    checkpoint = imported(tmp_path, write_folder(tmp_path / "source", TENSORS, config))
    assert checkpoint.config.own == MixtralConfig(norm_eps=1e-5, rope_theta=1e6)


def test_a_theta_inside_rope_scaling_wins(tmp_path: Path) -> None:
    scaling = {"type": "default", "rope_theta": 77.0}
    config = {**CONFIG, **OLD, "rope_scaling": scaling, "rope_parameters": {"rope_type": "yarn"}}
    checkpoint = imported(tmp_path, write_folder(tmp_path / "source", TENSORS, config))
    assert checkpoint.config.own == MixtralConfig(norm_eps=1e-6, rope_theta=77.0)


def test_an_empty_rope_scaling_is_none(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS, {**CONFIG, "rope_scaling": {}})
    assert imported(tmp_path, source).config.own == MixtralConfig(norm_eps=1e-6, rope_theta=1e4)


def test_tied_derived_and_further_tensors_are_left_out(tmp_path: Path) -> None:
    tied = {"lm_head.weight": TENSORS["model.embed_tokens.weight"].clone()}
    more = TENSORS | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "mtp.fc.weight": torch.ones(3),
        "model.mtp_block.0.mlp.up_proj.weight": torch.ones(3),
    }
    source = write_folder(tmp_path / "source", more | tied, {**CONFIG, "tie_word_embeddings": True})
    assert "head.weight" not in imported(tmp_path, source).read_shared()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (TENSORS["lm_head.weight"], "'lm_head.weight' differs from the embedding it is tied to"),
        (torch.ones(20, 7), "'lm_head.weight' has shape [20, 7], expected [20, 8]"),
        (torch.ones(20, 8).int(), "'lm_head.weight' is not of a floating dtype"),
    ],
)
def test_a_tied_head_is_the_embedding(head: Tensor, message: str, tmp_path: Path) -> None:
    """transformers would not tie them then."""
    tensors = TENSORS | {"lm_head.weight": head}
    source = write_folder(tmp_path / "source", tensors, {**CONFIG, "tie_word_embeddings": True})
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert message in str(caught.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({}, torch.float32),
        ({"": torch.bfloat16}, torch.bfloat16),
        ({"": torch.bfloat16, "layernorm": torch.float32}, torch.bfloat16),
        ({"": torch.bfloat16, "gate": torch.float32}, torch.bfloat16),
        ({"": torch.float32, "gate": torch.bfloat16}, torch.float32),
        ({"": torch.float16}, torch.float32),
    ],
)
def test_dtypes(dtypes: dict[str, torch.dtype], expected: torch.dtype, tmp_path: Path) -> None:
    tensors = dict(TENSORS)
    for part, dtype in dtypes.items():
        tensors |= {name: TENSORS[name].to(dtype) for name in tensors if part in name}
    assert imported(tmp_path, write_folder(tmp_path / "source", tensors)).dtype == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: quant_method 'awq' is not"),
        ({"sliding_window": -1}, "sliding_window: -1 is not in"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        (
            {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}},
            "rope_parameters: rope_type 'longrope' is not",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, "rope_parameters: unknown key 'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "unknown key 'partial_rotary_factor'"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling: type 'su' is not supported"),
        ({"rope_parameters": [1]}, "rope_parameters: expected an object, got list"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta: -1 is not a number above 0"),
        ({"attention_bias": True}, "unknown key 'attention_bias'"),
        ({"auto_map": {}}, "unknown key 'auto_map'"),
        ({"head_dim": 3}, "head_dim: 3 values cannot"),
        ({"head_dim": 0}, "head_dim: 0 is not in"),
        ({"head_dim": 1026}, "head_dim: 1026 values cannot"),
        ({"num_key_value_heads": 2}, "n_kv_heads: 2 does not divide n_heads 3"),
        ({"num_experts_per_tok": 4}, "top_k: 4 is more than n_experts 3"),
        ({"hidden_size": "8"}, "hidden_size: expected a whole number, got str"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false"),
        ({"rms_norm_eps": True}, "rms_norm_eps: True is not a number above 0"),
    ],
)
def test_what_would_change_the_result_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "source", {}, {**CONFIG, **change})
    (source / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ConfigError) as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{source}/config.json: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def _without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def _with(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(f"{EXPERT}.w3.weight"), f"tensor '{EXPERT}.w3.weight' is missing"),
        (_without("lm_head.weight"), "tensor 'lm_head.weight' is missing"),
        (_with("model.extra.weight", torch.ones(2)), "unknown tensor 'model.extra.weight'"),
        # A config with too few layers.
        (_with("model.layers.2.norm.weight", torch.ones(2)), "unknown tensor 'model.layers.2.norm.weight'"),
        (
            _with(f"{EXPERT}.w1.weight", torch.ones(8, 6)),
            f"'{EXPERT}.w1.weight' has shape [8, 6], expected [6, 8]",
        ),
        (_with(f"{EXPERT}.w1.weight", torch.ones(6, 8).int()), "is not of a floating dtype"),
        (_with(f"{EXPERT}.w1.weight", torch.full((6, 8), torch.nan)), "has values that are not finite"),
    ],
)
def test_tensors_that_are_not_the_models(
    change: Callable[[dict[str, Tensor]], object], message: str, shards: int, tmp_path: Path
) -> None:
    tensors = dict(TENSORS)
    change(tensors)
    source = write_folder(tmp_path / "source", tensors, shards=shards)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert message in str(caught.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": "../x.safetensors"}}, "is in no safetensors file of this folder"),
        ({"weight_map": {"a": "/x.safetensors"}}, "is in no safetensors file of this folder"),
        ({"weight_map": {"a": "model.bin"}}, "is in no safetensors file of this folder"),
        ({"weight_map": {"a": 3}}, "is in no safetensors file of this folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors: is missing, and model.safetensors"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "tensor 'a' is not in model-00001"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_is_none(index: object, message: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS, shards=2)
    write_json(source / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert message in str(caught.value)


def test_no_weights_at_all(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", CONFIG)
    with pytest.raises(
        CheckpointError, match=r"has neither model\.safetensors nor model\.safetensors\.index"
    ):
        import_checkpoint(source, tmp_path / "ours")
    (source / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="save the model as safetensors"):
        import_checkpoint(source, tmp_path / "ours")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ],
)
def test_a_clone_without_the_files_of_git_lfs(name: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS, shards=2)
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(CheckpointError, match="git lfs pull") as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImportOptions(router="uniform"), "a Hugging Face model has its own router"),
        (ImportOptions(config_path=Path("c.yaml")), "--config is for models of ModularForge"),
    ],
)
def test_options_of_other_sources(options: ImportOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExpertMeshError, match=message):
        import_checkpoint(write_folder(tmp_path / "source", TENSORS), tmp_path / "ours", options)


def test_sampling_and_tokens(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS, {**CONFIG, "eos_token_id": 5, "pad_token_id": 7})
    generation = {"eos_token_id": [2, 4, 2], "temperature": 0.6, "top_p": 7, "do_sample": True}
    write_json(source / "generation_config.json", generation)
    report = import_checkpoint(source, tmp_path / "ours")
    found = Checkpoint.open(tmp_path / "ours").generation
    assert found == GenerationDefaults(0.6, 0, 1.0, bos_token_id=None, eos_token_ids=(2, 4), pad_token_id=7)
    assert "generation_config.json: top_p: 7 is not in (0, 1]; 1.0 is used" in report.notes


def test_every_number_of_sampling(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS)
    numbers = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}
    write_json(source / "generation_config.json", {**numbers, "transformers_version": "4.51.0"})
    report = import_checkpoint(source, tmp_path / "ours")
    found = Checkpoint.open(tmp_path / "ours").generation
    assert {name: getattr(found, name) for name in numbers} == numbers
    assert not any("generation_config" in note for note in report.notes)


@pytest.mark.parametrize(("said", "temperature"), [(False, 0.0), (True, 0.7), (None, 0.7)])
def test_greedy_where_the_authors_say_so(said: bool | None, temperature: float, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS)
    write_json(source / "generation_config.json", {"do_sample": said, "temperature": 0.7})
    assert imported(tmp_path, source).generation.temperature == temperature


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ({"suppress_tokens": [1]}, "suppress_tokens: list is not done here, outputs are without it"),
        ({"begin_suppress_tokens": [1]}, "begin_suppress_tokens: list is not"),
        ({"forced_bos_token_id": 1}, "forced_bos_token_id: 1 is not done"),
        ({"forced_eos_token_id": 1}, "forced_eos_token_id: 1 is not done"),
        ({"bad_words_ids": [[1]]}, "bad_words_ids: list is not done"),
        ({"sequence_bias": [[[1], 2.0]]}, "sequence_bias: list is not done"),
        ({"guidance_scale": 1.5}, "guidance_scale: 1.5 is not done"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size: 3 is not done"),
        ({"num_beams": 4}, "num_beams: 4 is not done"),
        ({"stop_strings": "end"}, "stop_strings: 'end' is not done"),
        ({"typical_p": 0.9}, "typical_p: 0.9 is not done"),
        ({"min_new_tokens": 4}, "min_new_tokens: 4 is not done"),
        ({"repetition_penalty": 2.5}, "repetition_penalty: 2.5 is not in (0, 2]; 1.0 is used"),
        ({"min_p": -1}, "min_p: -1 is not in [0, 1]; 0.0 is used"),
    ],
)
def test_what_is_not_done_is_named(said: dict[str, object], note: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS)
    write_json(source / "generation_config.json", said)
    notes = import_checkpoint(source, tmp_path / "ours").notes
    assert [each for each in notes if "generation_config" in each] == [
        each for each in notes if each.startswith(f"generation_config.json: {note}")
    ]
    assert any(each.startswith(f"generation_config.json: {note}") for each in notes)


def test_what_changes_nothing_is_no_note(tmp_path: Path) -> None:
    """All that transformers writes when it is asked for everything."""
    source = write_folder(tmp_path / "source", TENSORS)
    neutral = {"num_beams": 1, "guidance_scale": 1.0, "typical_p": 1.0, "no_repeat_ngram_size": 0}
    harmless = {"max_new_tokens": 64, "use_cache": True, "_from_model_config": True, "suppress_tokens": []}
    write_json(source / "generation_config.json", neutral | harmless | {"forced_bos_token_id": None})
    notes = import_checkpoint(source, tmp_path / "ours").notes
    assert not any("generation_config" in note for note in notes)


@pytest.mark.parametrize("bad", [20, -1, "2", [2, None], 2.0])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_token_that_ends_nothing_is_refused(name: str, bad: object, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS)
    said = CONFIG if name == "config.json" else {}
    write_json(source / name, {**said, "eos_token_id": bad})
    with pytest.raises(ConfigError) as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert str(caught.value).startswith(f"{source / name}: eos_token_id: ")


def test_tokenizer_template_and_its_tokens(tmp_path: Path) -> None:
    sizes = {**CONFIG, "vocab_size": 300}
    more = {name: torch.randn(300, 8) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    source = write_folder(tmp_path / "source", TENSORS | more, sizes)
    (source / "tokenizer.json").write_text(LIBRARY.to_str())
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ messages }}"}]
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": templates}
    write_json(source / "tokenizer_config.json", special)
    checkpoint = imported(tmp_path, source)
    assert checkpoint.read_tokenizer() == LIBRARY.to_str().encode()
    assert checkpoint.read_tokenizer_settings().default_template == "{{ messages }}"
    assert (checkpoint.generation.bos_token_id, checkpoint.generation.eos_token_ids) == (1, (2,))
    (source / "chat_template.jinja").write_text("wins")
    import_checkpoint(source, tmp_path / "second")
    assert Checkpoint.open(tmp_path / "second").read_tokenizer_settings().default_template == "wins"


@pytest.mark.parametrize("bad", ["", "{}", '{"model": {"type": "BPE"}}', LIBRARY.to_str()])
def test_a_tokenizer_that_cannot_be_built_is_not_kept(bad: str, tmp_path: Path) -> None:
    """The last one has more tokens than the model."""
    source = write_folder(tmp_path / "source", TENSORS)
    (source / "tokenizer.json").write_text(bad)
    with pytest.raises(TokenizerError) as caught:
        import_checkpoint(source, tmp_path / "ours")
    assert str(caught.value).startswith(f"{source}: tokenizer.json: ")
    assert not (tmp_path / "ours").exists()


def test_a_doubled_key_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", TENSORS)
    text = json.dumps(CONFIG)
    (source / "config.json").write_text(text[:-1] + ', "hidden_size": 16}')
    with pytest.raises(CheckpointError, match="duplicate key 'hidden_size'"):
        import_checkpoint(source, tmp_path / "ours")
