import hashlib
import os
from pathlib import Path

import pytest
import torch

from moe_model.checkpoint.random_model import module_generator
from moe_model.checkpoint.reader import Checkpoint, GenerationDefaults, checkpoint_name
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from tests.moe_model.source_files import (
    TINY,
    assert_same,
    random_expert,
    tree,
    write_checkpoint,
)

SHARED = "shared.safetensors"
EXPERT = "experts/layer_0001/expert_0002.safetensors"
TOKENIZER = b'{"a tokenizer": "is not read here"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", tokenizer=TOKENIZER)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        ModelConfig(
            d_model=6, n_heads=3, n_layers=1, d_ff=5, n_experts=7, top_k=3, vocab_size=11, max_seq_len=3
        ),
        ModelConfig(
            d_model=3, n_heads=1, n_layers=2, d_ff=1, n_experts=1, top_k=1, vocab_size=1, max_seq_len=1
        ),
        ModelConfig(
            d_model=4, n_heads=2, n_layers=1, d_ff=3, n_experts=2, top_k=1, vocab_size=9, tie_embedding=False
        ),
    ],
)
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    generation = GenerationDefaults(0.5, 1, 0.25, bos_token_id=0, eos_token_ids=(0,), pad_token_id=0)
    write_checkpoint(tmp_path / "new", config, dtype=dtype, generation=generation)
    checkpoint = Checkpoint.open(tmp_path / "new")
    checkpoint.verify()
    assert (checkpoint.config, checkpoint.dtype, checkpoint.generation) == (config, dtype, generation)
    shared = family_of(config).init_shared(config, module_generator(0, "shared"))
    assert_same(checkpoint.read_shared(), {name: tensor.to(dtype) for name, tensor in shared.items()})
    for layer in range(config.n_layers):
        for expert in range(config.n_experts):
            expected = random_expert(config, layer, expert)
            actual = checkpoint.read_expert(layer, expert)
            assert_same(actual, {name: tensor.to(dtype) for name, tensor in expected.items()})


def test_converts_to_the_dtype_asked_for(folder: Path) -> None:
    expected = random_expert(TINY, 1, 2)
    actual = Checkpoint.open(folder).read_expert(1, 2, torch.bfloat16)
    assert_same(actual, {name: tensor.bfloat16() for name, tensor in expected.items()})


def test_the_tokenizer_comes_out_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    assert Checkpoint.open(folder).read_tokenizer() == TOKENIZER
    assert Checkpoint.open(write_checkpoint(tmp_path / "without")).read_tokenizer() is None


def test_the_fingerprint_is_that_of_the_manifest(folder: Path, tmp_path: Path) -> None:
    opened = Checkpoint.open(folder)
    assert opened.fingerprint == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert opened.fingerprint == Checkpoint.open(folder).fingerprint
    other = Checkpoint.open(write_checkpoint(tmp_path / "other", tokenizer=TOKENIZER, seed=1))
    assert other.fingerprint != opened.fingerprint


def test_verify_reads_every_file(folder: Path) -> None:
    seen: list[str] = []
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify(seen.append)
    assert sorted(seen) == sorted(checkpoint.files)


@pytest.mark.parametrize(("layer", "expert"), [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_an_expert_that_the_model_does_not_have(folder: Path, layer: int, expert: int) -> None:
    with pytest.raises(CheckpointError, match="the model has no experts/"):
        Checkpoint.open(folder).read_expert(layer, expert)


def test_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("absent", "no such"),
        ("file", "is an empty file"),
        ("empty", "is an empty folder"),
    ):
        with pytest.raises(CheckpointError, match=f"{name}.*{reason}"):
            Checkpoint.open(tmp_path / name)


def test_tensors_do_not_hang_on_the_file(folder: Path) -> None:
    """A file replaced or removed while a model is in use changes nothing."""
    tensors = Checkpoint.open(folder).read_expert(1, 2)
    os.truncate(folder / EXPERT, 0)
    assert_same(tensors, random_expert(TINY, 1, 2))


def test_reading_changes_nothing(folder: Path) -> None:
    before = tree(folder)
    checkpoint = Checkpoint.open(folder)
    checkpoint.read_shared()["embedding.weight"].zero_()
    checkpoint.verify()
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("store/blobs", "blobs"),
        ("latest", "latest"),
        ("latest/", "latest"),
        ("./latest/.", "latest"),
        ("store/../latest", "latest"),
        (".", "here"),
        ("sub/..", "here"),
        ("latest/../blobs", "blobs"),
    ],
)
def test_its_name_is_the_one_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    """A link is named for itself: what it points to is often a sum or a date."""
    here = tmp_path / "here"
    for folder in ("sub", "store/blobs", "blobs"):
        (here / folder).mkdir(parents=True)
    (here / "latest").symlink_to("store/blobs")
    monkeypatch.chdir(here)
    assert checkpoint_name(Path(given)) == name


def test_a_folder_without_a_name_has_one() -> None:
    assert checkpoint_name(Path("/")) == "model"
