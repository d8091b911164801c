"""Models as training frameworks save them: prefixes before all names, dicts around the state dict."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from moe_model.checkpoint.importer import ImportOptions, import_checkpoint
from moe_model.errors import CheckpointError
from tests.moe_model.checkpoint.importer.test_job import HEAD, check
from tests.moe_model.source_files import (
    TINY,
    expert_part,
    source_config,
    state_dict,
    write_config,
    write_parts,
)

TENSORS = state_dict(TINY)
PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "net.student."]


def under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_that_all_names_share_is_taken_off(source: Path, dest: Path, prefix: str) -> None:
    path = source / "model.pt"
    torch.save({"model_state_dict": under(prefix, TENSORS), "config": source_config(TINY)}, path)
    report = import_checkpoint(path, dest)
    check(dest, TINY, TENSORS)
    assert f"took the prefix '{prefix}' off all tensors' names in model.pt" in report.notes


def test_of_a_safetensors_file_too(source: Path, dest: Path) -> None:
    write_config(source, TINY)
    kept = {name: tensor for name, tensor in TENSORS.items() if name != HEAD}
    safetensors.torch.save_file(under("module.", kept), source / "assembled_model.safetensors")
    report = import_checkpoint(source, dest)
    check(dest, TINY, TENSORS)
    assert "took the prefix 'module.' off all tensors' names in assembled_model.safetensors" in report.notes


@pytest.mark.parametrize(
    "wrap", [lambda tensors: tensors, lambda tensors: {"state_dict": tensors, "epoch": 3}]
)
def test_of_a_folder_of_parts_in_one_line(source: Path, dest: Path, wrap: Callable[[Any], Any]) -> None:
    write_parts(source, TINY, TENSORS)
    shared: Any = torch.load(source / "shared_components.pt", weights_only=True)
    torch.save(wrap(under("module.", shared)), source / "shared_components.pt")
    for expert in range(TINY.n_experts):
        part = expert_part(TINY, TENSORS, expert)
        part["experts_state_dict"] = under("module.", part["experts_state_dict"])
        torch.save(part, source / f"expert_{expert}.pt")
    routers = {name: tensor for name, tensor in TENSORS.items() if ".router." in name or ".ffn_norm." in name}
    torch.save(under("_orig_mod.", routers), source / "routers.pt")
    report = import_checkpoint(source, dest, ImportOptions(router=str(source / "routers.pt")))
    check(dest, TINY, TENSORS)
    assert (
        "took the prefix 'module.' off all tensors' names in shared_components.pt and 3 more" in report.notes
    )
    assert "took the prefix '_orig_mod.' off all tensors' names in routers.pt" in report.notes[1]


@pytest.mark.parametrize("inner", ["_orig_mod", "module", "_fsdp_wrapped_module"])
def test_a_part_of_the_model_may_have_been_wrapped_alone(source: Path, dest: Path, inner: str) -> None:
    path = source / "model.pt"
    renamed = {
        name.replace(".experts.1.", f".experts.1.{inner}."): tensor for name, tensor in TENSORS.items()
    }
    torch.save({"model_state_dict": renamed, "config": source_config(TINY)}, path)
    report = import_checkpoint(path, dest)
    check(dest, TINY, TENSORS)
    assert f"took '{inner}' out of tensors' names in model.pt" in report.notes


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["module"], ["state_dict", "model"]])
def test_a_dict_around_the_state_dict_is_opened(source: Path, dest: Path, keys: list[str]) -> None:
    wrapped: Any = under("module.", TENSORS)
    for key in reversed(keys):
        wrapped = {key: wrapped, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(wrapped | {"config": source_config(TINY)}, source / "model.pt")
    report = import_checkpoint(source / "model.pt", dest)
    check(dest, TINY, TENSORS)
    assert f"took the state dict under '{'.'.join(keys)}' in model.pt" in report.notes


def test_nothing_is_said_of_what_was_not_wrapped(source: Path, dest: Path) -> None:
    torch.save({"model_state_dict": TENSORS, "config": source_config(TINY)}, source / "model.pt")
    report = import_checkpoint(source / "model.pt", dest)
    assert not [note for note in report.notes[1:] if note.startswith("took")]


ONE = dict(list(TENSORS.items())[:1])
CYCLE: dict[str, Any] = {"model": {}}
CYCLE["model"]["model_state_dict"] = CYCLE
REFUSED: Mapping[str, tuple[Any, str]] = {
    "two of them": (
        {"state_dict": TENSORS, "model": TENSORS},
        "'state_dict' and 'model' both hold tensors; save the one that is meant alone",
    ),
    "only some names": (under("module.", TENSORS) | ONE, "tensor '[a-z_.0-9]+' is missing"),
    "one name twice": (
        {f"{name}": tensor for name, tensor in TENSORS.items()}
        | {"moe_layers.0.module.router.gate.weight": TENSORS["moe_layers.0.router.gate.weight"]},
        "are one tensor's names",
    ),
    "unknown": ({"ema": TENSORS, "epoch": 3}, "'ema' is not a dense tensor"),
    "a dict in itself": (CYCLE, "'model' is not a dense tensor|'model_state_dict' is not"),
    "a number that is said to be many": (
        TENSORS | {"shared.token_embedding.weight": torch.ones(1, 1).expand(TINY.vocab_size, TINY.d_model)},
        "'shared.token_embedding.weight' has more values than the file has for it",
    ),
    "a name of a million parts": ({"a." * (1 << 20): torch.ones(1)}, "has 1 tensors, too few"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_clear_is_refused_by_name(source: Path, dest: Path, case: str) -> None:
    loaded, message = REFUSED[case]
    write_config(source, TINY)
    torch.save(loaded, source / "model.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(source / "model.pt", dest)
    assert len(str(caught.value)) < 1000
    assert not dest.exists()
