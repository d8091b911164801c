import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_model.checkpoint.manifest import FileEntry, GenerationDefaults, Manifest, dtype_name, tensor_files
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families.mixtral.config import MixtralConfig
from tests.integration.processes import DEMO_CHECKPOINT
from tests.moe_model.source_files import TINY

GENERATION = GenerationDefaults(0.8, 40, 0.9, bos_token_id=2, eos_token_ids=(3, 39), pad_token_id=0)
FILES = {name: FileEntry(1000, "0a" * 32) for name in [*tensor_files(TINY), "tokenizer.json"]}
MANIFEST = Manifest(TINY, torch.bfloat16, GENERATION, FILES)
PLAIN: dict[str, Any] = json.loads(MANIFEST.to_bytes())
SHARED = "shared.safetensors"

Change = Callable[[dict[str, Any]], object]


def parse(data: object) -> Manifest:
    return Manifest.parse(json.dumps(data).encode(), "M")


def test_what_is_written_is_read() -> None:
    assert Manifest.parse(MANIFEST.to_bytes(), "M") == MANIFEST


def test_the_boundaries_of_generation_are_inside() -> None:
    for generation in (
        GenerationDefaults(0.0, 0, 1.0, bos_token_id=39),
        GenerationDefaults(2.0, TINY.vocab_size, 1e-9, eos_token_ids=tuple(range(40))),
        GenerationDefaults(min_p=1.0, repetition_penalty=2.0),
    ):
        generation.check(TINY.vocab_size)


def _set(*path_and_value: Any) -> Change:
    *path, last, value = path_and_value

    def change(data: dict[str, Any]) -> None:
        for key in path:
            data = data[key]
        data[last] = value

    return change


def _drop(*path: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("format", "other"), "not a manifest of format 'expertmesh'"),
        (_set("format_version", 3), "format_version: 3 is unknown, 1 and 2 are known"),
        (_set("format_version", True), "format_version: True is unknown"),
        (_set("format_version", 1.0), "format_version: 1.0 is unknown"),
        (_set("auto_map", {}), "unknown key 'auto_map'"),
        (_drop("generation"), "missing key 'generation'"),
        (_set("model", []), "model: expected an object"),
        (_set("model", "n_experts", 10**9), "n_experts: 1000000000 is not in"),
        (_set("model", "n_layers", -1), "n_layers: -1 is not in"),
        (_set("model", "n_layers", True), "n_layers: expected a whole number"),
        (_set("model", "d_model", 8.0), "d_model: expected a whole number"),
        (_set("model", "top_k", 4), "top_k: 4 is more than n_experts 3"),
        (_set("model", "auto_map", 1), "unknown key 'auto_map'"),
        (_drop("model", "d_ff"), "missing key 'd_ff'"),
        (_set("dtype", "float16"), "dtype: 'float16' is not one of"),
        (_set("dtype", ["float32"]), "dtype: list is not one of"),
        (_set("generation", None), "generation: expected an object"),
        (_set("generation", "seed", 1), "generation: unknown key 'seed'"),
        (_drop("generation", "top_p"), "generation: missing key 'top_p'"),
        (_set("generation", "temperature", 2.01), "generation: temperature: 2.01 is not in"),
        (_set("generation", "temperature", -0.1), "temperature: -0.1 is not in"),
        (_set("generation", "temperature", "1"), "temperature: '1' is not in"),
        (_set("generation", "temperature", True), "temperature: True is not in"),
        (_set("generation", "temperature", 10**400), "temperature: 1000"),
        (_set("generation", "top_k", 41), r"top_k: 41 is not in \[0, 40\]"),
        (_set("generation", "top_k", 1.0), "top_k: 1.0 is not in"),
        (_set("generation", "top_p", 0), "top_p: 0 is not in"),
        (_set("generation", "top_p", 1.1), "top_p: 1.1 is not in"),
        (_set("generation", "bos_token_id", 40), r"bos_token_id: 40 is not in \[0, 40\)"),
        (_set("generation", "pad_token_id", -1), "pad_token_id: -1 is not in"),
        (_set("generation", "eos_token_ids", [3, 40]), "eos_token_ids: 40 is not in"),
        (_set("generation", "eos_token_ids", [False]), "eos_token_ids: False is not in"),
        (_set("generation", "eos_token_ids", 3), "eos_token_ids: expected a list"),
        (_set("generation", "eos_token_ids", [0] * 65), "eos_token_ids: more than 64"),
        (_set("tokenizer", "../tokenizer.json"), "tokenizer: '../tokenizer.json' is neither"),
        (_set("tokenizer", None), "files: unknown name 'tokenizer.json'"),
        (_drop("files", "tokenizer.json"), "files: 'tokenizer.json' is missing"),
        (_set("files", []), "files: expected an object"),
        (_drop("files", SHARED), "files: 'shared.safetensors' is missing"),
        (_drop("files", "experts/layer_0001/expert_0002.safetensors"), "layer_0001/expert_0002.* is missing"),
        (_set("files", "/etc/passwd", {}), "files: unknown name '/etc/passwd'"),
        (_set("files", SHARED, None), "'shared.safetensors': expected size and sha256"),
        (_set("files", SHARED, "path", "x"), "'shared.safetensors': expected size and sha256"),
        (_set("files", SHARED, "size", -1), "'shared.safetensors': size -1 is not in"),
        (_set("files", SHARED, "size", True), "size True is not in"),
        (_set("files", SHARED, "size", 1 << 60), "size 1152921504606846976 is not in"),
        (_set("files", SHARED, "sha256", "0A" * 32), "sha256 is not 64 lower-case hex digits"),
        (_set("files", SHARED, "sha256", "0a" * 32 + "\n"), "sha256 is not 64 lower-case hex digits"),
    ],
)
def test_refuses_a_bad_manifest_and_names_the_key(change: Change, reason: str) -> None:
    data = copy.deepcopy(PLAIN)
    change(data)
    with pytest.raises(CheckpointError, match=f"^M: .*{reason}") as raised:
        parse(data)
    assert "\n" not in str(raised.value)


def test_a_path_in_place_of_a_name_is_refused() -> None:
    data = copy.deepcopy(PLAIN)
    data["files"]["experts/../shared.safetensors"] = data["files"].pop(SHARED)
    with pytest.raises(CheckpointError, match=r"files: 'shared\.safetensors' is missing"):
        parse(data)


def test_hostile_counts_cost_nothing() -> None:
    """Four million expert files are claimed; that would take seconds and gigabytes to write down."""
    data = copy.deepcopy(PLAIN)
    data["model"] |= {"n_layers": 1024, "n_experts": 4096}
    with pytest.raises(
        CheckpointError, match=r"files: 'experts/layer_0000/expert_0003\.safetensors' is missing"
    ):
        parse(data)


@pytest.mark.parametrize(
    "text", [b"", b"\x00", b"[1]", b"null", b'{"format": "expertmesh", "format": 1}', b"[" * 9999]
)
def test_refuses_what_is_no_manifest_at_all(text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^M: "):
        Manifest.parse(text, "M")


def test_a_dtype_that_no_checkpoint_has() -> None:
    with pytest.raises(ConfigError, match=r"torch\.float16 is not one of float32, bfloat16"):
        dtype_name(torch.float16)


def test_file_names_sort_like_layers_and_experts() -> None:
    names = list(tensor_files(ModelConfig(n_layers=2, n_experts=11, top_k=1)))
    assert names[1:] == sorted(names[1:])
    assert len(names) == 1 + 2 * 11


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def _paths(data: object, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(data, dict):
        return [prefix, *(path for key, value in data.items() for path in _paths(value, (*prefix, key)))]
    return [prefix]


@given(st.sampled_from(_paths(PLAIN)[1:]), JSON, st.sampled_from(["replace", "add", "drop"]), st.text())
def test_any_change_gives_a_manifest_or_a_checkpoint_error(
    path: tuple[Any, ...], value: Any, kind: str, key: str
) -> None:
    data = copy.deepcopy(PLAIN)
    parent: Any = data
    for step in path[:-1]:
        parent = parent[step]
    if kind == "replace":
        parent[path[-1]] = value
    elif kind == "add":
        parent[key] = value
    else:
        del parent[path[-1]]
    try:
        manifest = parse(data)
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
        assert set(manifest.files) == set(FILES)
    assert "\n" not in message


def test_the_first_version_is_read_for_ever() -> None:
    """The bundled model's manifest is of version 1, and stays so as the proof."""
    data = json.loads((DEMO_CHECKPOINT / "manifest.json").read_bytes())
    assert data["format_version"] == 1
    found = parse(data)
    assert found.config.to_dict() == data["model"]
    assert parse(json.loads(found.to_bytes())) == found
    assert json.loads(found.to_bytes()) == data | {"format_version": 2}


@pytest.mark.parametrize(
    "later", [{"n_kv_heads": 1}, {"own": {"rope_theta": 1e4}}, {"dense_layers": [0]}, {"head_dim": 2}]
)
def test_keys_of_later_versions_are_unknown_to_the_first(later: dict[str, Any]) -> None:
    data = copy.deepcopy(PLAIN)
    data["format_version"] = 1
    assert parse(data) == MANIFEST
    data["model"] |= {"family": "mixtral", **later}
    with pytest.raises(CheckpointError, match=r"^M: model: "):
        parse(data)


@pytest.mark.parametrize("later", [{"min_p": 0.1}, {"repetition_penalty": 1.05}])
def test_later_keys_of_generation(later: dict[str, Any]) -> None:
    data = copy.deepcopy(PLAIN)
    assert not later.keys() & data["generation"].keys()
    data["generation"] |= later
    assert parse(data).generation == replace(GENERATION, **later)
    assert json.loads(parse(data).to_bytes()) == data
    data["format_version"] = 1
    with pytest.raises(CheckpointError, match=r"^M: generation: unknown key"):
        parse(data)


def test_what_the_second_version_adds_survives() -> None:
    config = replace(TINY, family="mixtral", n_kv_heads=1, head_dim=6, own=MixtralConfig(1e-6, 77.0))
    manifest = Manifest(config, torch.float32, GENERATION, FILES)
    assert Manifest.parse(manifest.to_bytes(), "M") == manifest
