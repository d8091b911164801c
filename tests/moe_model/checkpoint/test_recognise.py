"""Folders and files that are no checkpoint of ours: each is named for what it is, with what to do next."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from expertmesh.cli import main
from moe_model.checkpoint.importer import import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.checkpoint.recognise import what_is
from moe_model.errors import CheckpointError
from tests.integration.processes import DEMO_CHECKPOINT, PORTS, run_command

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
ONLY_OURS = "this version serves models of ModularForge, and of Hugging Face: mixtral"
Make = Callable[[Path], object]


def file(name: str, data: bytes = b"x") -> Make:
    def make(path: Path) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)

    return make


def hugging_face(model_type: object) -> Make:
    def make(path: Path) -> None:
        file("config.json", json.dumps({"model_type": model_type}).encode())(path)
        file("model-00001-of-00002.safetensors")(path)

    return make


def both(*makes: Make) -> Make:
    def make(path: Path) -> None:
        for one in makes:
            one(path)

    return make


def nothing(path: Path) -> None:
    """The folder stays as it is."""


FOLDERS = [
    (nothing, "is an empty folder"),
    (file(".hidden"), "is an empty folder"),
    (hugging_face("other_moe"), f"is a Hugging Face model of model_type other_moe; {ONLY_OURS}"),
    (hugging_face(7), f"is a Hugging Face model; {ONLY_OURS}"),
    (hugging_face("\x1b[31m" * 99), "is a Hugging Face model of model_type "),
    (file("model.Q8_0.gguf", b"GGUF"), f"holds a GGUF file (model.Q8_0.gguf); {ONLY_OURS}"),
    (file("adapter_config.json"), "is an adapter of another model"),
    (both(file("params.json"), file("consolidated.00.pth")), "is a model of another kind"),
    (both(file("a/manifest.json"), file("b/manifest.json")), "holds 2 checkpoints; give one of them: a, b"),
    (file("only/manifest.json"), "is no checkpoint but holds one: {path}/only"),
    (
        file("snapshots/config.json", b'{"model_type": "mixtral"}'),
        "is no checkpoint but holds one: {path}/sn",
    ),
    (
        file("run-1/assembled_model.pt"),
        "holds a ModularForge output: expertmesh import {path}/run-1 my-model",
    ),
    (
        file("config.json", b"["),
        "is no checkpoint and no ModularForge output, it holds config.json; its config.json is no JSON",
    ),
    (file("config.json", b"[" * 100_000), "is no checkpoint and no ModularForge output"),
    (both(*(file(f"{n}.txt") for n in range(9))), "it holds 0.txt, 1.txt, 2.txt, 3.txt and 5 more"),
    (file("step_9.pt"), "is no checkpoint; if ModularForge wrote step_9.pt, import that file"),
    (file("expert_3.pt"), "is a ModularForge output without its shared_components.pt"),
]
OUTPUTS = [
    (file("assembled_model.pt"), "is a ModularForge output: expertmesh import {path} my-model"),
    (file("calibrated_model.safetensors"), "is a ModularForge output: expertmesh import {path} my-model"),
    (
        file("shared_components.pt"),
        "is a ModularForge output of parts: expertmesh import {path} my-model --router",
    ),
]
FILES = [
    ("model.gguf", b"GGUF\x03", "is a GGUF file"),
    ("renamed.pt", b"GGUF\x03", "is a GGUF file"),
    ("empty.txt", b"", "is an empty file"),
    ("lfs.txt", POINTER, "run `git lfs pull`"),
    ("model.tar.gz", b"x", "is an archive; unpack it"),
    ("notes.txt", b"x", "is a file; a checkpoint is a folder with a manifest.json or a config.json in it"),
]


def refused_by_all(path: Path, dest: Path, said: str) -> None:
    """Who opens a checkpoint and who imports one says the same."""
    for opened in (lambda: Checkpoint.open(path), lambda: import_checkpoint(path, dest)):
        with pytest.raises(CheckpointError) as caught:
            opened()
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < 400
    assert not dest.exists()


@pytest.mark.parametrize(("make", "said"), FOLDERS)
def test_a_folder(make: Make, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    make(path)
    refused_by_all(path, tmp_path / "dest", said.format(path=path))


def test_the_folder_of_a_model_in_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "models--some-org--Some-Model"
    file("snapshots/0123/config.json")(path)
    refused_by_all(path, tmp_path / "dest", "give its name, some-org/Some-Model")


@pytest.mark.parametrize(("make", "said"), OUTPUTS)
def test_an_output_of_modularforge_is_to_be_imported(make: Make, said: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert said.format(path=tmp_path) in str(caught.value)


@pytest.mark.parametrize(("name", "data", "said"), FILES)
def test_a_file(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path / name)
    assert said in str(caught.value)


def test_a_file_that_may_be_modularforges(tmp_path: Path) -> None:
    for name in ("model.pt", "my model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    assert what_is(tmp_path / "model.pt").endswith(f"expertmesh import {tmp_path}/model.pt my-model")
    assert what_is(tmp_path / "my model.safetensors").endswith(
        f"import '{tmp_path}/my model.safetensors' my-model"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_of_a_hugging_face_model(name: str, tmp_path: Path) -> None:
    hugging_face("qwen3_moe")(tmp_path)
    shutil.copy(DEMO_CHECKPOINT / "shared.safetensors", tmp_path / name)
    said = "is a Hugging Face model of model_type qwen3_moe"
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(tmp_path / name)
    with pytest.raises(CheckpointError, match=said):
        import_checkpoint(tmp_path / name, tmp_path / "dest")


def test_a_file_of_a_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=rf"give its folder, {DEMO_CHECKPOINT}"):
        Checkpoint.open(DEMO_CHECKPOINT / "manifest.json")


def test_what_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("missing", "no such file or folder"),
        ("link", "is a link that leads nowhere"),
        ("pipe", "is neither a file nor a folder"),
    ):
        refused_by_all(Path(name), Path("dest"), said)


@pytest.mark.parametrize(
    "name", ["manifest.json", "shared.safetensors", "experts/layer_0000/expert_0001.safetensors"]
)
def test_a_checkpoint_without_the_files_of_git_lfs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cloned"
    shutil.copytree(DEMO_CHECKPOINT, path)
    (path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        Checkpoint.open(path)


def test_a_source_without_the_files_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "assembled_model.pt").write_bytes(POINTER)
    for source in (tmp_path, tmp_path / "assembled_model.pt"):
        with pytest.raises(CheckpointError, match="git lfs pull"):
            import_checkpoint(source, tmp_path / "dest")


def test_our_own_is_not_to_be_imported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ours already, .*: expertmesh serve"):
        import_checkpoint(DEMO_CHECKPOINT, tmp_path / "dest")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{path}"],
        ["generate", "{path}", "--prompt", "x"],
        ["import", "{path}", "dest"],
    ],
)
def test_every_command_says_so(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hugging_face("mixtral\n\x1b[2J")(tmp_path)
    assert main([one.format(path=tmp_path) for one in arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{arguments[0]}: error: {tmp_path}: is a Hugging Face model of model_type mixtral" in error
    assert "\x1b" not in error


@pytest.mark.parametrize("command", [["serve", *PORTS], ["demo", "--prompt", "x"]])
def test_a_server_says_so_before_it_starts_anything(command: list[str], tmp_path: Path) -> None:
    hugging_face("falcon")(tmp_path)
    result = run_command(*command, str(tmp_path))
    assert "is a Hugging Face model of model_type falcon" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert result.returncode == 1


def test_the_config_of_a_hugging_face_model(tmp_path: Path) -> None:
    hugging_face("mixtral")(tmp_path)
    expected = f"is a Hugging Face model of model_type mixtral; give its folder, {tmp_path}"
    assert what_is(tmp_path / "config.json") == f"is a file of a folder that {expected}"
