from pathlib import Path

import pytest
import yaml

from moe_model.checkpoint.importer.source_config import (
    generation_defaults,
    model_config,
    read_config_file,
    read_model_config,
)
from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from tests.moe_model.source_files import GOLDEN, TINY, source_config

MODULARFORGE = GenerationDefaults(0.8, 40, 0.9)  # its top_k of 50 is all of a vocabulary of 40


def test_reads_a_configuration_of_modularforge() -> None:
    expected = ModelConfig(
        d_model=64, n_heads=4, n_layers=3, d_ff=96, n_experts=5, top_k=2, vocab_size=320, max_seq_len=32
    )
    assert read_model_config(GOLDEN / "config.yaml") == expected


def test_json_and_our_own_keys(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"d_model": 64, "family": "modularforge", "tie_embedding": false}')
    assert read_model_config(tmp_path / "c.json") == ModelConfig(d_model=64, tie_embedding=False)


def test_what_is_left_out_is_modularforges_default() -> None:
    assert model_config({"model": {"n_experts": 9}}, "c") == ModelConfig(n_experts=9)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"d_modle": 64}, "c: model: unknown key 'd_modle'"),
        ({"family": "modularforge"}, "unknown key 'family'"),
        ({7: 1}, "unknown key 7"),
        ({"d_model": 7}, "n_heads: 8 does not divide d_model 7"),
        ({"top_k": 6}, "top_k: 6 is more than n_experts 5"),
        ({"n_experts": 10**9}, "n_experts: 1000000000 is not in"),
        ({"n_experts": "5"}, "n_experts: expected a whole number"),
        ({"n_experts": True}, "n_experts: expected a whole number"),
        ({"n_layers": [1, 2]}, "n_layers: expected one value, got list"),
        ({"dropout": {}}, "dropout: expected one value, got dict"),
        (None, "c: has no section 'model'"),
        ([1], "c: has no section 'model'"),
    ],
)
def test_refuses_a_bad_model_and_names_the_key(model: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        model_config({"model": model}, "c")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.yaml", b"model: [", r"c\.yaml: .* in line"),
        (
            "c.yaml",
            b"model: !!python/object/apply:os.system ['touch marker']",
            "could not determine a constructor",
        ),
        ("c.yaml", b"- 1", "expected a mapping, got list"),
        ("c.yaml", b"", "expected a mapping, got NoneType"),
        ("c.yaml", b"\xff", "utf-8"),
        ("c.yaml", b"a: \x00", "special characters"),
        ("c.yaml", b"a: 2001-99-99", "month must be in"),
        ("c.yaml", b"a: " + b"9" * 5000, "digits"),
        ("c.yaml", b"[" * 5000, "recursion"),
        ("c.yaml", b"a: " + b"x" * (300 << 10), "bytes, at most"),
        ("c.yaml", b"model: 1\nmodel: 2", "'model' is there twice, line 2"),
        ("c.json", b'{"model": 1, "model": 2}', "duplicate key 'model'"),
    ],
)
def test_refuses_a_file_that_is_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: bytes, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=reason) as raised:
        read_config_file(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "marker").exists()


def test_a_few_lines_that_would_grow_to_billions(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "model: {d_model: *a11}"]))
    with pytest.raises(CheckpointError, match="has more than 8 aliases"):
        read_model_config(tmp_path / "c.yaml")


def test_generation_defaults_of_modularforge() -> None:
    assert generation_defaults({}, ModelConfig()) == (GenerationDefaults(0.8, 50, 0.9), [])
    assert generation_defaults(source_config(TINY, evaluation=None), TINY) == (MODULARFORGE, [])


def test_the_sources_own_generation_defaults() -> None:
    evaluation = yaml.safe_load("{temperature: 0, top_k: 0, top_p: 1.0, prompts: [x]}")
    assert generation_defaults({"evaluation": evaluation}, TINY) == (GenerationDefaults(0, 0, 1.0), [])


@pytest.mark.parametrize(
    "evaluation",
    [
        {"temperature": 2.5},
        {"temperature": "warm"},
        {"top_k": 41},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": [1]},
    ],
)
def test_generation_defaults_out_of_range_are_left_out_and_said(evaluation: dict[str, object]) -> None:
    defaults, notes = generation_defaults({"evaluation": evaluation}, TINY)
    assert defaults == MODULARFORGE
    (name,) = evaluation
    assert len(notes) == 1
    assert notes[0].startswith(f"evaluation: {name}: ")


def test_merges_of_merges_are_refused_before_they_are_made(tmp_path: Path) -> None:
    """Each level would have ten times as many keys as the one before."""
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(levels))
    with pytest.raises(CheckpointError, match=r"config\.yaml: has more than 8 aliases"):
        read_config_file(path)


def test_a_few_aliases_and_many_stars_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# " + "*" * 100 + "\nsize: &size 8\nmodel: {d_model: *size, n_heads: *size}\n")
    assert read_config_file(path)["model"] == {"d_model": 8, "n_heads": 8}
