"""Models by their name on the hub: what is downloaded, what a cache has without a network; refusals."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from expertmesh.cli import main
from moe_model.checkpoint.hub import HubModel, local_folder
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from tests.moe_model.checkpoint.fake_hub import COMMIT, serving
from tests.moe_model.checkpoint.hugging_face.written import (
    CONFIG,
    cached,
    make_tensors,
    write_folder,
    write_json,
)

NAME = "some-org/Some-Model"
TENSORS = make_tensors()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the hub has: also files that nobody needs."""
    folder = write_folder(tmp_path / "source", TENSORS, shards=2)
    write_json(folder / "generation_config.json", {"eos_token_id": 3})
    (folder / "original").mkdir()
    for name in ("README.md", "pytorch_model.bin", "original/model.safetensors", "consolidated.safetensors"):
        (folder / name).write_bytes(b"large, and of no use")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; nothing here is at a working folder where such a path exists."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    offline(monkeypatch)
    return tmp_path / "hub"


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def online(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refusal(name: str = NAME) -> str:
    with pytest.raises(CheckpointError) as caught:
        local_folder(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ("Qwen/Qwen3-30B-A3B", HubModel("Qwen/Qwen3-30B-A3B")),
        ("a/b@main", HubModel("a/b", "main")),
        ("a/b@refs/pr/1", HubModel("a/b", "refs/pr/1")),
        (Path("a/b"), HubModel("a/b")),
        ("there/b", None),
        ("there", None),
        ("no-organisation", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("./a/b", None),
        ("../a", None),
        ("a/b@", None),
        ("a/b@../x", HubModel("a/b", "../x")),
        ("a/b c", None),
        ("~/model", None),
    ],
)
def test_what_is_a_name(
    given: str | Path, model: HubModel | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert HubModel.of(given) == model


def test_a_path_that_exists_wins(source: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / NAME)
    assert local_folder(NAME) == Path(NAME)


def test_a_download(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files that are read, with their progress; what is there is not downloaded again."""
    told: list[tuple[int, int]] = []
    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)
        folder = local_folder(NAME, lambda done, total: told.append((done, total)))
        assert folder == cache / "models--some-org--Some-Model" / "snapshots" / COMMIT
        small = ["config.json", "generation_config.json", "model.safetensors.index.json"]
        shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        assert sorted(hub.asked) == sorted([*small, *shards])
        num_bytes = sum((source / name).stat().st_size for name in shards)
        assert told[-1] == (num_bytes, num_bytes)
        hub.asked.clear()
        assert local_folder(f"{NAME}@main") == folder
        assert hub.asked == []
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.name == NAME
    assert torch.equal(checkpoint.read_shared()["head.weight"], TENSORS["lm_head.weight"])
    checkpoint.verify()
    # The hub is gone: what the cache has.
    assert local_folder(NAME) == folder
    offline(monkeypatch)
    assert local_folder(NAME) == folder


def test_an_interrupt_ends_a_download(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once; what was begun is not finished behind its back."""
    may_go_on = threading.Event()
    is_first, waited = threading.Lock(), list[bool]()

    def interrupt(_done: int, _total: int) -> None:
        if is_first.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        waited.append(may_go_on.wait(10))

    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)
        with pytest.raises(KeyboardInterrupt):
            local_folder(NAME, interrupt)
        assert waited == []
        may_go_on.set()
        for thread in threading.enumerate():
            if thread.name == "download":
                thread.join()
    snapshot = cache / "models--some-org--Some-Model" / "snapshots" / COMMIT
    assert all(waited)
    assert not any((snapshot / f"model-0000{number}-of-00002.safetensors").exists() for number in (1, 2))


def test_one_file_of_weights(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(NAME, write_folder(tmp_path / "source", TENSORS)) as hub:
        online(monkeypatch, hub.endpoint)
        Checkpoint.open(local_folder(NAME))
        assert sorted(hub.asked) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "unheard_of"}, "model_type 'unheard_of' is not one of"),
        ({"some_new_key": 1}, "unknown key 'some_new_key'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq' is not one that is read"),
    ],
)
def test_what_is_not_understood_is_refused_before_its_weights_are_downloaded(
    change: dict[str, object], message: str, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(source / "config.json", {**CONFIG, **change})
    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)
        with pytest.raises(Exception, match=message):
            local_folder(NAME)
        assert not [name for name in hub.asked if name.endswith(".safetensors")]


def test_what_the_hub_has_not(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)
        assert refusal("some-org/another").startswith("some-org/another: no such folder, and no such model")
        assert refusal(f"{NAME}@v2") == f"{NAME}@v2: the Hugging Face hub has no revision v2 of it"
        (source / "model-00002-of-00002.safetensors").unlink()
        missing = "model-00002-of-00002.safetensors is in no cache here: the hub does not have it"
        assert refusal().startswith(f"{NAME}: {missing}")


def test_a_model_of_another_kind(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "config.json").unlink()
    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)
        assert refusal() == f"{NAME}: is a model without a config.json on the Hugging Face hub"


def test_a_token(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(NAME, source, token="hf_secret") as hub:
        online(monkeypatch, hub.endpoint)
        assert "asks for its terms to be accepted" in refusal()
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        Checkpoint.open(local_folder(NAME))


def test_a_hub_that_is_not_reached(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(NAME, source) as hub:
        endpoint = hub.endpoint
    online(monkeypatch, endpoint)
    expected = f"the hub does not have it or is out of reach (`hf download {NAME} --revision v2` says which)"
    assert expected in refusal(f"{NAME}@v2")


def test_weights_that_fail(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for by their commit, and told of by the name that was given."""
    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)

        def fail(_done: int, _total: int) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(CheckpointError, match=f"^{NAME}: cannot be downloaded: .* No space left"):
            local_folder(NAME, fail)


def test_a_download_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert refusal() == f"{NAME}: cannot be downloaded: [Errno 28] No space left on device"


def test_an_endpoint_that_is_no_address(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the library below: neither an OSError nor a ValueError."""
    online(monkeypatch, "huggingface.co")
    assert refusal().startswith(f"{NAME}: cannot be downloaded: Request URL is missing")


def test_without_a_network_what_the_cache_has(source: Path, cache: Path, tmp_path: Path) -> None:
    assert "unset HF_HUB_OFFLINE, or copy the model's folder here" in refusal()
    write_folder(tmp_path / "plain", TENSORS, shards=2)
    snapshot = cached(tmp_path / "plain", cache, NAME)
    assert local_folder(NAME) == snapshot
    assert local_folder(f"{NAME}@{snapshot.name}") == snapshot
    assert "unset HF_HUB_OFFLINE" in refusal(f"{NAME}@other")
    shard = snapshot / "model-00001-of-00002.safetensors"
    shard.unlink()
    assert refusal().startswith(f"{NAME}: {shard.name} is in no cache here: unset HF_HUB_OFFLINE")


@pytest.mark.parametrize("command", [["inspect"], ["generate", "--prompt", "x"], ["import"]])
def test_commands_take_a_name(
    command: list[str],
    source: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["ours"] if command == ["import"] else []
    with serving(NAME, source) as hub:
        online(monkeypatch, hub.endpoint)
        # Without a tokenizer, a prompt of text is refused; that is how far it comes.
        assert main([*command, NAME, *more]) == (1 if command[0] == "generate" else 0)
        shown = capsys.readouterr()
        expected = {"inspect": "MixtralForCausalLM", "generate": "tokenizer", "import": f"imported {NAME}"}
        assert expected[command[0]] in shown.out + shown.err
        assert main([*command, "a/b", *more]) == 1
    assert capsys.readouterr().err.startswith(f"expertmesh {command[0]}: error: a/b: no such folder, and no")
