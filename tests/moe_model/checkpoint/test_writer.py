"""Writing: whole or not at all, and nothing of anyone else's is ever lost."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from moe_model.checkpoint.random_model import module_generator
from moe_model.checkpoint.reader import Checkpoint, CheckpointWriter, GenerationDefaults
from moe_model.checkpoint.writer import require_free
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import family_of
from moe_model.files.atomic_folder import AtomicFolder
from tests.moe_model.source_files import TINY, random_expert, tree, write_checkpoint


def writer_for(dest: Path, *, force: bool = False) -> CheckpointWriter:
    return CheckpointWriter(dest, TINY, torch.float32, GenerationDefaults(), force=force)


def fill(writer: CheckpointWriter, *, seed: int = 0) -> None:
    writer.write_shared(family_of(TINY).init_shared(TINY, module_generator(seed, "shared")))
    for layer in range(TINY.n_layers):
        for expert in range(TINY.n_experts):
            writer.write_expert(layer, expert, random_expert(TINY, layer, expert, seed))


def test_files_can_come_in_any_order(tmp_path: Path) -> None:
    with writer_for(tmp_path / "new") as writer:
        for layer, expert in ((1, 2), (0, 0), (1, 0), (0, 2), (0, 1), (1, 1)):
            writer.write_expert(layer, expert, random_expert(TINY, layer, expert))
        writer.write_shared(family_of(TINY).init_shared(TINY, module_generator(0, "shared")))
    assert tree(tmp_path / "new") == tree(write_checkpoint(tmp_path / "other"))
    assert sorted(os.listdir(tmp_path)) == ["new", "other"]


def test_nothing_is_at_the_destination_before_everything_is(tmp_path: Path) -> None:
    with writer_for(tmp_path / "new") as writer:
        fill(writer)
        assert not (tmp_path / "new").exists()
    Checkpoint.open(tmp_path / "new").verify()


def _fill_twice(writer: CheckpointWriter) -> None:
    fill(writer)
    fill(writer)


class Terminated(BaseException):
    """What a signal handler may raise."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated, RuntimeError, SystemExit, MemoryError])
@pytest.mark.parametrize("force", [False, True])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, error: type[BaseException], force: bool) -> None:
    if force:
        write_checkpoint(tmp_path / "new")
    before = tree(tmp_path)

    def interrupted() -> None:
        with writer_for(tmp_path / "new", force=force) as writer:
            fill(writer, seed=1)
            raise error

    with pytest.raises(error):
        interrupted()
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["new"] * force


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda writer: None, "shared.safetensors: was not written"),
        (
            lambda writer: writer.write_shared({}),
            "shared.safetensors: tensor 'blocks.0.attn_norm.bias' is missing",
        ),
        (
            lambda writer: writer.write_expert(2, 0, {}),
            "layer_0002/expert_0000.safetensors: the model has no such",
        ),
        (lambda writer: writer.write_expert(-1, 0, {}), "the model has no such expert"),
        (lambda writer: writer.write_expert(0, 3, {}), "the model has no such expert"),
        (_fill_twice, "shared.safetensors: written twice"),
        (
            lambda writer: writer.write_expert(0, 0, random_expert(TINY, 0, 0) | {"x": torch.ones(1)}),
            "layer_0000/expert_0000.safetensors: unknown tensor 'x'",
        ),
    ],
)
def test_refuses_what_is_not_the_model(
    tmp_path: Path, write: Callable[[CheckpointWriter], object], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason), writer_for(tmp_path / "new") as writer:
        write(writer)
    assert os.listdir(tmp_path) == []


def test_one_missing_expert_is_named(tmp_path: Path) -> None:
    def incomplete() -> None:
        with writer_for(tmp_path / "new") as writer:
            writer.write_shared(family_of(TINY).init_shared(TINY, module_generator(0, "shared")))
            for layer, expert in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2)):
                writer.write_expert(layer, expert, random_expert(TINY, layer, expert))

    with pytest.raises(CheckpointError, match=r"layer_0001/expert_0001\.safetensors: was not written"):
        incomplete()
    assert os.listdir(tmp_path) == []


def test_refuses_what_a_manifest_may_not_say(tmp_path: Path) -> None:
    bad: list[tuple[ModelConfig, torch.dtype, GenerationDefaults]] = [
        (TINY, torch.float16, GenerationDefaults()),
        (TINY, torch.float32, GenerationDefaults(temperature=3)),
        (TINY, torch.float32, GenerationDefaults(eos_token_ids=(40,))),
        (ModelConfig(family="unheard-of"), torch.float32, GenerationDefaults()),
    ]
    for config, dtype, generation in bad:
        with pytest.raises(ConfigError):
            CheckpointWriter(tmp_path / "new", config, dtype, generation)


# What is at the destination already.


def test_does_not_replace_unless_told_to(tmp_path: Path) -> None:
    dest = write_checkpoint(tmp_path / "new")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="new: exists already"):
        write_checkpoint(dest, seed=1)
    assert tree(tmp_path) == before


def test_force_replaces_a_checkpoint(tmp_path: Path) -> None:
    dest = write_checkpoint(tmp_path / "new", tokenizer=b"{}")
    write_checkpoint(dest, seed=1, force=True)
    assert tree(dest) == tree(write_checkpoint(tmp_path / "other", seed=1))
    assert sorted(os.listdir(tmp_path)) == ["new", "other"]


def test_force_replaces_an_empty_folder_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        Checkpoint.open(write_checkpoint(tmp_path / name, force=True)).verify()


def _make_home(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def _make_checkpoint_with_notes(path: Path) -> None:
    write_checkpoint(path)
    (path / "experts" / "notes.txt").write_text("mine")


def _make_folder_with_other_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": "other"}')


def _make_link(path: Path) -> None:
    path.symlink_to(write_checkpoint(path.with_name("real")))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_make_home, "'thesis.txt', not of a checkpoint"),
        (_make_checkpoint_with_notes, "'experts/notes.txt', not of a checkpoint"),
        (_make_folder_with_other_manifest, "is not a checkpoint"),
        (lambda path: path.write_text("a file"), "is not a folder"),
        (_make_link, "is not a folder"),
        (lambda path: path.symlink_to("nowhere"), "is not a folder"),
    ],
)
def test_never_replaces_what_is_not_a_checkpoint(
    tmp_path: Path, make: Callable[[Path], object], reason: str, force: bool
) -> None:
    make(tmp_path / "new")
    before = tree(tmp_path), sorted(os.listdir(tmp_path))
    expected = f"new: .*{reason}" if force else "new: exists already"
    for attempt in (
        lambda: write_checkpoint(tmp_path / "new", force=force),
        lambda: require_free(tmp_path / "new", force=force),
    ):
        with pytest.raises(CheckpointError, match=expected):
            attempt()
    assert (tree(tmp_path), sorted(os.listdir(tmp_path))) == before


@pytest.mark.parametrize(
    ("dest", "reason"),
    [
        ("absent/new", "absent: there is no such folder"),
        ("..", "not a name"),
        ("file/new", "file: there is no such"),
    ],
)
def test_a_destination_that_cannot_be(tmp_path: Path, dest: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=reason):
        write_checkpoint(tmp_path / dest)
    assert os.listdir(tmp_path) == ["file"]


def test_a_relative_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with writer_for(Path("new")) as writer:
        fill(writer)
    assert os.listdir(tmp_path) == ["new"]


def test_a_destination_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    def overtaken() -> None:
        with writer_for(tmp_path / "new") as writer:
            fill(writer)
            _make_home(tmp_path / "new")

    with pytest.raises(CheckpointError, match="new: exists already"):
        overtaken()
    assert tree(tmp_path) == {"new/thesis.txt": b"years of work"}


def test_the_old_folder_is_put_back_if_the_new_one_cannot_be_put_in_place(tmp_path: Path) -> None:
    old = tmp_path / "new"
    old.mkdir()
    (old / "kept").write_text("kept")
    folder = AtomicFolder(old, may_replace=lambda _: None)
    folder.create()
    shutil.rmtree(folder.path)
    with pytest.raises(CheckpointError, match="new: cannot be put into place: No such file"):
        folder.commit()
    folder.discard()
    assert tree(tmp_path) == {"new/kept": b"kept"}
    assert os.listdir(tmp_path) == ["new"]


# No space left.


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The interpreter ignores SIGXFSZ, so a write beyond the limit fails like one to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 2000], ids=["at once", "halfway"])
@pytest.mark.parametrize("force", [False, True])
def test_a_failing_write_leaves_nothing_behind(tmp_path: Path, limit: int, force: bool) -> None:
    if force:
        write_checkpoint(tmp_path / "new")
    before = tree(tmp_path)
    with (
        pytest.raises(CheckpointError, match=r"new/.*: cannot be written: File too large"),
        writer_for(tmp_path / "new", force=force) as writer,
        file_size_limit(limit),
    ):
        fill(writer, seed=1)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["new"] * force


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    dest = write_checkpoint(small_disk / "new")
    before = tree(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(8 << 10))
    with pytest.raises(CheckpointError, match=r"new/.*: cannot be written: No space left on device"):
        write_checkpoint(dest, seed=1, force=True)
    filler.unlink()
    assert tree(small_disk) == before
    assert os.listdir(small_disk) == ["new"]
