from pathlib import Path

import pytest
import torch

from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.random_model import module_generator
from moe_model.checkpoint.reader import Checkpoint, GenerationDefaults
from moe_model.errors import CheckpointError
from tests.moe_model.source_files import TINY, tree


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        initialise_checkpoint(tmp_path / name, TINY, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    a, c = tree(tmp_path / "a"), tree(tmp_path / "c")
    assert all(a[name] != c[name] for name in a)


def test_no_two_modules_are_alike(tmp_path: Path) -> None:
    initialise_checkpoint(tmp_path / "new", TINY)
    files = tree(tmp_path / "new")
    assert len(set(files.values())) == len(files)


def test_a_module_depends_on_nothing_but_what_it_is() -> None:
    keys = [
        (0, "expert", 0, 1),
        (0, "expert", 1, 0),
        (0, "shared", 0, 0),
        (1, "expert", 0, 1),
        (-1, "expert", 0, 1),
    ]
    draws = [torch.rand(4, generator=module_generator(*key)).tolist() for key in keys]
    again = [torch.rand(4, generator=module_generator(*key)).tolist() for key in reversed(keys)]
    assert draws == again[::-1]
    assert len(set(map(tuple, draws))) == len(keys)


def test_says_how_far_it_is_and_nothing_ends_a_text(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    initialise_checkpoint(
        tmp_path / "new",
        TINY,
        dtype=torch.bfloat16,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 7) for done in range(1, 7)]
    checkpoint = Checkpoint.open(tmp_path / "new")
    checkpoint.verify()
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.generation == GenerationDefaults()
    assert checkpoint.read_tokenizer() is None


def test_replaces_only_when_told_to(tmp_path: Path) -> None:
    initialise_checkpoint(tmp_path / "new", TINY)
    with pytest.raises(CheckpointError, match="exists already"):
        initialise_checkpoint(tmp_path / "new", TINY)
    initialise_checkpoint(tmp_path / "new", TINY, seed=1, force=True)
