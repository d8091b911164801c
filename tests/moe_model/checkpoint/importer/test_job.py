"""Whole imports: every kind of source, and models of every shape."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from moe_model.checkpoint.importer import ImportOptions, ImportReport, import_checkpoint
from moe_model.checkpoint.reader import Checkpoint, GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from tests.moe_model.source_files import (
    GOLDEN,
    TINY,
    StateDict,
    assert_same,
    expected_expert,
    expected_shared,
    state_dict,
    tree,
    write_assembled,
    write_config,
    write_parts,
    write_safetensors,
)

EMBEDDING, HEAD = "shared.token_embedding.weight", "shared.lm_head.weight"
POSITIONS = "shared.pos_encoding.pe"
FC1 = "moe_layers.1.experts.2.fc1.weight"

SHAPES = [
    ModelConfig(d_model=6, n_heads=3, n_layers=2, d_ff=5, n_experts=7, top_k=3, vocab_size=11, max_seq_len=3),
    ModelConfig(
        d_model=8, n_heads=8, n_layers=3, d_ff=1, n_experts=4, top_k=1, vocab_size=60, max_seq_len=17
    ),
    ModelConfig(d_model=5, n_heads=1, n_layers=1, d_ff=9, n_experts=1, top_k=1, vocab_size=1, max_seq_len=1),
    ModelConfig(
        d_model=4, n_heads=2, n_layers=1, d_ff=4, n_experts=11, top_k=11, vocab_size=4, max_seq_len=4
    ),
]


def check(dest: Path, config: ModelConfig, tensors: StateDict, dtype: torch.dtype = torch.float32) -> None:
    checkpoint = Checkpoint.open(dest)
    checkpoint.verify()
    assert (checkpoint.config, checkpoint.dtype) == (config, dtype)
    assert_same(checkpoint.read_shared(), _as(expected_shared(config, tensors), dtype))
    for layer in range(config.n_layers):
        for expert in range(config.n_experts):
            expected = expected_expert(tensors, layer, expert)
            assert_same(checkpoint.read_expert(layer, expert), _as(expected, dtype))


def _as(tensors: StateDict, dtype: torch.dtype) -> StateDict:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


# The golden model through every kind of file.


def golden_tensors() -> StateDict:
    loaded: Any = torch.load(GOLDEN / "assembled_model.pt", weights_only=True)
    tensors: StateDict = loaded["model_state_dict"]
    return tensors


def _bare_torch(folder: Path) -> Path:
    torch.save(golden_tensors(), folder / "model.pth")
    return folder / "model.pth"


def _bare_safetensors(folder: Path) -> Path:
    write_safetensors(folder, golden_tensors(), dropped=HEAD)
    return folder / "assembled_model.safetensors"


def _output_folder(folder: Path) -> Path:
    shutil.copy(GOLDEN / "assembled_model.pt", folder)
    return folder


def _output_folder_safetensors(folder: Path) -> Path:
    write_safetensors(folder, golden_tensors(), dropped=EMBEDDING)
    return folder


@pytest.mark.parametrize(
    "prepare",
    [
        lambda folder: GOLDEN / "assembled_model.pt",
        lambda folder: GOLDEN,
        _bare_torch,
        _bare_safetensors,
        _output_folder,
        _output_folder_safetensors,
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_kind_of_assembled_source_gives_the_golden_model(
    source: Path, tmp_path: Path, prepare: Callable[[Path], Path], dtype: torch.dtype | None
) -> None:
    for name in ("config.yaml", "tokenizer.json"):
        shutil.copy(GOLDEN / name, source)
    import_checkpoint(prepare(source), tmp_path / "new", ImportOptions(dtype=dtype))
    config = ModelConfig(
        d_model=64, n_heads=4, n_layers=3, d_ff=96, n_experts=5, top_k=2, vocab_size=320, max_seq_len=32
    )
    check(tmp_path / "new", config, golden_tensors(), dtype or torch.float32)
    checkpoint = Checkpoint.open(tmp_path / "new")
    assert checkpoint.read_tokenizer() == (GOLDEN / "tokenizer.json").read_bytes()
    assert checkpoint.generation == GenerationDefaults(0.8, 50, 0.9, 2, (3,), 0)


def test_parts_with_the_assembled_models_router_give_the_golden_model(source: Path, tmp_path: Path) -> None:
    for path in GOLDEN.iterdir():
        if not path.name.startswith(("assembled", "expected")):
            shutil.copy(path, source)
    options = ImportOptions(router=str(GOLDEN / "assembled_model.pt"))
    import_checkpoint(source, tmp_path / "new", options)
    with_assembled = import_checkpoint(GOLDEN, tmp_path / "again", options)
    assert "not assembled_model.pt" in with_assembled.notes[0]
    assert tree(tmp_path / "new") == tree(tmp_path / "again")
    check(tmp_path / "new", Checkpoint.open(tmp_path / "new").config, golden_tensors())


# Models of other shapes.


@pytest.mark.parametrize("config", SHAPES)
def test_other_shapes(source: Path, tmp_path: Path, config: ModelConfig) -> None:
    tensors = state_dict(config)
    import_checkpoint(write_assembled(source, config, tensors), tmp_path / "assembled")
    check(tmp_path / "assembled", config, tensors)
    router = {name: tensor for name, tensor in tensors.items() if ".router.gate." in name}
    safetensors.torch.save_file(router, source / "router.safetensors")
    write_parts(source, config, tensors)
    (source / "assembled_model.pt").unlink()
    options = ImportOptions(router=str(source / "router.safetensors"))
    import_checkpoint(source, tmp_path / "parts", options)
    norms = {
        f"moe_layers.{layer}.ffn_norm.{part}": torch.full((config.d_model,), fill)
        for layer in range(config.n_layers)
        for part, fill in (("weight", 1.0), ("bias", 0.0))
    }
    check(tmp_path / "parts", config, tensors | norms)


def test_a_bfloat16_source_stays_bfloat16(source: Path, tmp_path: Path) -> None:
    tensors = state_dict(TINY, torch.bfloat16)
    import_checkpoint(write_assembled(source, TINY, tensors), tmp_path / "kept")
    check(tmp_path / "kept", TINY, tensors, torch.bfloat16)
    options = ImportOptions(dtype=torch.float32)
    import_checkpoint(source, tmp_path / "widened", options)
    check(tmp_path / "widened", TINY, _as(tensors, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_become_float32(source: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = state_dict(TINY, dtype)
    import_checkpoint(write_assembled(source, TINY, tensors), tmp_path / "new")
    check(tmp_path / "new", TINY, tensors)


# What may be left out, and what is said about it.


def run(source: Path, dest: Path, **options: Any) -> ImportReport:
    return import_checkpoint(source, dest, ImportOptions(**options))


def test_a_safetensors_file_may_lack_what_is_derived(source: Path, tmp_path: Path) -> None:
    tensors = state_dict(TINY)
    kept = {name: t for name, t in tensors.items() if "noise_weight" not in name and name != POSITIONS}
    write_config(source, TINY)
    run(write_safetensors(source, kept, dropped=HEAD), tmp_path / "new")
    check(tmp_path / "new", TINY, tensors)


def test_positions_may_lack_the_batch_axis(source: Path, tmp_path: Path) -> None:
    tensors = state_dict(TINY)
    run(write_assembled(source, TINY, tensors | {POSITIONS: tensors[POSITIONS][0]}), tmp_path / "new")
    check(tmp_path / "new", TINY, tensors)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 9e-5), (torch.bfloat16, 3e-3)])
def test_positions_may_differ_by_rounding(
    source: Path, tmp_path: Path, dtype: torch.dtype, error: float
) -> None:
    tensors = state_dict(TINY, dtype)
    rounded = (tensors[POSITIONS].float() + error).to(dtype)
    run(write_assembled(source, TINY, tensors | {POSITIONS: rounded}), tmp_path / "new")
    check(tmp_path / "new", TINY, tensors, dtype)


def test_without_a_tokenizer(source: Path, tmp_path: Path) -> None:
    report = run(write_assembled(source, TINY, state_dict(TINY)), tmp_path / "new")
    assert any("no tokenizer.json" in note for note in report.notes)
    checkpoint = Checkpoint.open(tmp_path / "new")
    assert checkpoint.read_tokenizer() is None
    assert checkpoint.generation == GenerationDefaults(0.8, 40, 0.9)


def test_the_calibrated_model_is_preferred(source: Path, tmp_path: Path) -> None:
    assembled, calibrated = state_dict(TINY), state_dict(TINY, seed=1)
    write_assembled(source, TINY, calibrated).rename(source / "calibrated_model.pt")
    write_assembled(source, TINY, assembled)
    report = run(source, tmp_path / "new")
    assert report.notes[0] == "took calibrated_model.pt"
    check(tmp_path / "new", TINY, calibrated)


def test_a_configuration_given_by_name(source: Path, tmp_path: Path) -> None:
    path = write_safetensors(source, state_dict(TINY), dropped=HEAD)
    config = write_config(source, TINY).rename(tmp_path / "other.yaml")
    with pytest.raises(
        CheckpointError, match=r"source: has no config\.yaml; name the configuration with --config"
    ):
        run(path, tmp_path / "new")
    run(path, tmp_path / "new", config_path=config)
    check(tmp_path / "new", TINY, state_dict(TINY))


def test_a_configuration_given_may_not_contradict_the_file(source: Path, tmp_path: Path) -> None:
    path = write_assembled(source, TINY, state_dict(TINY))
    agreeing = write_config(source, TINY)
    run(path, tmp_path / "new", config_path=agreeing)
    other = write_config(tmp_path, ModelConfig(**(TINY.to_dict() | {"top_k": 1})))
    with pytest.raises(ConfigError, match="top_k is 1, the assembled file says 2"):
        run(path, tmp_path / "newer", config_path=other)


def test_says_how_far_it_is(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = write_assembled(source, TINY, state_dict(TINY))
    import_checkpoint(path, tmp_path / "new", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 7)]


def test_other_files_among_the_parts_do_no_harm(source: Path, dest: Path) -> None:
    write_parts(source, TINY, state_dict(TINY))
    for name in ("expert_0_results.json", "expert_0_step100.pt", "shared_results.json"):
        (source / name).write_text("{}")
    run(source, dest, router="kaiming")
    Checkpoint.open(dest).verify()


def test_the_seed_chooses_the_kaiming_router(source: Path, tmp_path: Path) -> None:
    write_parts(source, TINY, state_dict(TINY))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(source, tmp_path / name, router="kaiming", seed=seed)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"shared.safetensors", "manifest.json"}
