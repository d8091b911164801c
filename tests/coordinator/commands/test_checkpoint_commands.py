"""`import`, `export`, `init` and `inspect`, from their arguments to what they print."""

import argparse
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from coordinator.commands import (
    export_arguments,
    export_checkpoint,
    import_arguments,
    import_checkpoint,
    init_arguments,
    init_checkpoint,
    inspect_arguments,
    inspect_checkpoint,
    sums,
    sums_arguments,
)
from coordinator.commands.amounts import format_bytes
from coordinator.commands.progress import progress_line
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from tests.moe_model.checkpoint.hugging_face.written import CONFIG, cached, make_tensors, write_folder

ARGUMENTS = {
    export_checkpoint: export_arguments,
    import_checkpoint: import_arguments,
    init_checkpoint: init_arguments,
    inspect_checkpoint: inspect_arguments,
    sums: sums_arguments,
}
FACTS = {"num_parameters": 261472, "num_active_parameters_per_token": 147904}


def run(command: ModuleType, *argv: object) -> int:
    parser = argparse.ArgumentParser()
    ARGUMENTS[command].add_arguments(parser)
    code: int = command.run(parser.parse_args([str(arg) for arg in argv]))
    return code


def inspected(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert run(inspect_checkpoint, *argv, "--json") == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_import_says_what_it_took(
    golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(import_checkpoint, golden_dir / "assembled_model.pt", tmp_path / "new") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "note: took assembled_model.pt"
    said = rf"imported .*assembled_model\.pt as float32: 17 files, 1\.1 MB, [\d.]+ s -> {tmp_path}/new"
    assert re.fullmatch(said, out[1])
    Checkpoint.open(tmp_path / "new").verify()


def test_import_passes_every_option_on(golden_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "parts"
    source.mkdir()
    for path in golden_dir.glob("*.pt"):
        if not path.name.startswith("assembled"):
            shutil.copy(path, source)
    given = ["--config", golden_dir / "config.yaml", "--router", "kaiming", "--dtype", "bfloat16"]
    run(import_checkpoint, source, tmp_path / "a", *given)
    run(import_checkpoint, source, tmp_path / "b", *given, "--seed", "5")
    a, b = Checkpoint.open(tmp_path / "a"), Checkpoint.open(tmp_path / "b")
    assert a.dtype == torch.bfloat16
    gate = "blocks.0.router.weight"
    assert not torch.equal(a.read_shared()[gate], b.read_shared()[gate])
    with pytest.raises(CheckpointError, match="exists already"):
        run(import_checkpoint, source, tmp_path / "a", *given)
    run(import_checkpoint, source, tmp_path / "a", *given, "--seed", "5", "--force")
    assert Checkpoint.open(tmp_path / "a").fingerprint == b.fingerprint


def test_inspect_for_programs(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = inspected(capsys, tiny_checkpoint)
    assert printed.items() >= FACTS.items()
    assert printed["architecture"] == "AssembledMoEModel"
    assert printed["dtype"] == "float32"
    assert printed["tokenizer"] == "tokenizer.json"
    assert "verified" not in printed
    checkpoint = Checkpoint.open(tiny_checkpoint)
    assert printed["model"] == checkpoint.config.to_dict()
    assert printed["fingerprint"] == checkpoint.fingerprint
    sizes = {name: (tiny_checkpoint / name).stat().st_size for name in checkpoint.files}
    assert {name: entry["size"] for name, entry in printed["files"].items()} == sizes
    assert printed["num_bytes"] == sum(sizes.values())


def test_inspect_for_people(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(inspect_checkpoint, tiny_checkpoint, "--verify") == 0
    out = capsys.readouterr().out
    for text in (
        "AssembledMoEModel",
        "261,472 (0.26 M), 147,904 (0.15 M) active per token",
        "float32",
        "top_k 2, vocab_size 320",
        "temperature 0.8, top_k 50, top_p 0.9, bos_token_id 2, eos_token_ids [3], pad_token_id 0",
        "17, 1.1 MB",
        "experts/layer_0002/expert_0004.safetensors          50,736",
        "verified    every sum and every tensor",
    ):
        assert text in out
    assert all(len(line) == len(line.rstrip()) for line in out.splitlines())


def test_inspect_says_what_a_folder_is_and_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the same rule as the page of models; without the 600 MiB that each process has anyway."""
    source = write_folder(tmp_path / "source", make_tensors())
    printed = inspected(capsys, source)
    expected = {"format": "hugging_face", "family": "mixtral", "quantisation": None, "dtype": "float32"}
    assert printed.items() >= expected.items()
    float32, bfloat16, int8, q8, q4 = printed["memory"]["served_as"]
    assert (float32["expert_bytes"], bfloat16["expert_bytes"]) == (4 * 3 * 6 * 8, 2 * 3 * 6 * 8)
    assert int8["expert_bytes"] == 3 * 6 * 8 + 4 * (6 + 6 + 8)
    assert (q8["expert_bytes"], q4["expert_bytes"]) == (34 * (6 + 6 + 8), 18 * (6 + 6 + 8))
    # Six experts on four workers: two on the fullest.
    held = {"1": 6, "2": 3, "3": 2, "4": 2, "8": 1}
    assert float32["worker_bytes"] == {n: 4 * 144 * number for n, number in held.items()}
    assert float32["cache_bytes_per_token"] == 2 * 2 * 4 * 4
    assert run(inspect_checkpoint, source) == 0
    out = capsys.readouterr().out
    assert "format      hugging_face, family mixtral" in out
    assert "of weights in each process, which needs 629.1 MB more for its libraries" in out
    bfloat16_row = "bfloat16 model 2.0 kB 32 B 288 B 1.7 kB 864 B 576 B 576 B 288 B"
    assert bfloat16_row in [" ".join(line.split()) for line in out.splitlines()]


def test_inspect_says_how_weights_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    source = write_folder(tmp_path / "source", make_tensors(), {**CONFIG, **stored})
    assert inspected(capsys, source)["quantisation"] == "fp8"
    run(inspect_checkpoint, source)
    assert "dtype       float32, stored as fp8" in capsys.readouterr().out


@pytest.mark.parametrize(("is_cached", "num_sums"), [(False, 0), (True, 2)])
def test_inspect_says_how_many_sums_it_compared(
    is_cached: bool, num_sums: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of small files, which the fingerprint is of, are compared with nothing."""
    source = write_folder(tmp_path / "source", make_tensors(), shards=2)
    folder = cached(source, tmp_path / "hub", "org/model") if is_cached else source
    assert inspected(capsys, folder, "--verify")["num_verified_sums"] == num_sums
    run(inspect_checkpoint, folder, "--verify")
    *_, last = capsys.readouterr().out.splitlines()
    every = "the sums of 2 of 4 files and every tensor"
    assert last.split(maxsplit=1)[1] == (
        every if is_cached else "every tensor; there is no sum that a file had to have"
    )


def test_inspect_verifies_only_when_told_to(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    assert inspected(capsys, copy, "--verify")["verified"] is True
    data = bytearray((copy / "shared.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "shared.safetensors").write_bytes(data)
    assert run(inspect_checkpoint, copy) == 0
    with pytest.raises(CheckpointError, match=r"shared\.safetensors: SHA-256"):
        run(inspect_checkpoint, copy, "--verify")


def test_init_takes_its_sizes_from_a_file(
    golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        options = ["--config", golden_dir / "config.yaml", "--seed", seed, "--dtype", "bfloat16"]
        assert run(init_checkpoint, tmp_path / name, *options) == 0
    assert capsys.readouterr().out.startswith("initialised with seed 3 as bfloat16: 16 files, ")
    a, b, c = (Checkpoint.open(tmp_path / name) for name in "abc")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.dtype == torch.bfloat16
    printed = inspected(capsys, tmp_path / "a")
    assert printed.items() >= FACTS.items()
    assert printed["tokenizer"] is None
    with pytest.raises(CheckpointError, match="exists already"):
        run(init_checkpoint, tmp_path / "a")
    run(init_checkpoint, tmp_path / "a", *options, "--force")


def test_init_is_the_model_of_54_million_parameters_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(init_checkpoint, tmp_path / "new", "--dtype", "bfloat16")
    capsys.readouterr()
    printed = inspected(capsys, tmp_path / "new")
    assert printed["model"] == ModelConfig().to_dict()
    assert printed["num_parameters"] == 54_631_424
    assert printed["num_active_parameters_per_token"] == 29_418_496


def test_init_names_what_is_wrong_with_its_sizes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {n_experts: 0}")
    with pytest.raises(ConfigError, match=r"c\.yaml: model: n_experts: 0 is not in"):
        run(init_checkpoint, tmp_path / "new", "--config", tmp_path / "c.yaml")
    assert not (tmp_path / "new").exists()


def test_init_like_another_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first layer only, in bfloat16; and back into a folder of that family, in float32."""
    source = write_folder(tmp_path / "source", make_tensors())
    options = ["--layers", "1", "--seed", "5", "--dtype", "bfloat16"]
    for name, like in (("a", source), ("b", source / "config.json")):
        assert run(init_checkpoint, tmp_path / name, "--like", like, *options) == 0
    assert capsys.readouterr().out.startswith("initialised with seed 5 as bfloat16: 4 files, ")
    a = Checkpoint.open(tmp_path / "a")
    assert a.fingerprint == Checkpoint.open(tmp_path / "b").fingerprint
    assert a.config == replace(Checkpoint.open(source).config, n_layers=1)
    assert run(export_checkpoint, tmp_path / "a", tmp_path / "left", "--dtype", "float32") == 0
    assert re.fullmatch(
        rf"exported {tmp_path}/a as float32: 3 files, [\d.]+ kB, [\d.]+ s -> {tmp_path}/left",
        capsys.readouterr().out.strip(),
    )
    left = Checkpoint.open(tmp_path / "left")
    assert (left.config, left.dtype) == (a.config, torch.float32)
    assert torch.equal(left.read_expert(0, 2)["up.weight"], a.read_expert(0, 2, torch.float32)["up.weight"])


def test_init_scales_matrices(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", make_tensors())
    run(init_checkpoint, tmp_path / "one", "--like", source)
    run(init_checkpoint, tmp_path / "four", "--like", source, "--scale", "4")
    one, four = (Checkpoint.open(tmp_path / name).read_shared() for name in ("one", "four"))
    assert torch.allclose(four["blocks.0.q.weight"], 4 * one["blocks.0.q.weight"])
    assert torch.equal(four["output_norm.weight"], one["output_norm.weight"])


@pytest.mark.parametrize("option", [["--layers", "1"], ["--scale", "2"]])
def test_init_has_options_of_like(option: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{option[0]} needs --like"):
        run(init_checkpoint, tmp_path / "new", *option)


def test_init_has_no_more_layers_than_the_other(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", make_tensors())
    with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers is 2, 3 layers are asked for"):
        run(init_checkpoint, tmp_path / "new", "--like", source, "--layers", "3")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_of_a_terminal_and_is_gone_at_the_end() -> None:
    with progress_line(stream := Terminal(), "going") as progress:
        progress(1, 9)
    shown = stream.getvalue()
    assert "going: file 1 of 9" in shown
    # Rubs out the line, and shows the cursor that it has hidden.
    assert shown.endswith("\x1b[2K")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_no_progress_where_there_is_no_terminal() -> None:
    with progress_line(stream := io.StringIO(), "going") as progress:
        progress(1, 9)
    assert stream.getvalue() == ""


def test_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "model", make_tensors(), shards=3)
    assert run(sums, folder) == 0
    assert re.match(r"summed 3 files, 10.\d kB, \d.\d s -> .*model/block-sums\n", capsys.readouterr().out)
    # It is no file of the model's: nothing else changes by it.
    assert "block-sums" not in inspected(capsys, folder)["files"]
    assert run(import_checkpoint, folder, tmp_path / "mine") == 0
    with pytest.raises(CheckpointError, match="mine: needs no sums, the one of each file is in its manifest"):
        run(sums, tmp_path / "mine")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (218_480_000, "218.5 MB"), (3 * 10**12, "3.0 TB")],
)
def test_bytes_for_people(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
