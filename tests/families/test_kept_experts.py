"""Experts kept in the bytes of a published folder: MXFP4 as gpt-oss has it, FP8 as DeepSeek has it.

Wherever they are computed, tokens and log probabilities are the same; and close to those of the
numbers that the bytes stand for.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coordinator.commands.inspect_checkpoint import describe
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.errors import ExchangeError
from coordinator.server.experts import open_experts
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, ConfigError
from moe_model.footprint import footprint
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.stored_matrix import random_matrix
from moe_model.loading import load_local_experts, load_module
from moe_model.names import STORED_FORMS, DtypeName, StoredForm
from moe_model.versions.expert_versions import ExpertFile, ExpertModule
from tests.coordinator.exchanges import Changing
from tests.families.cases import CASES
from tests.families.ours import CONFIG, Generated, generate
from tests.native import needs_native

SIZES = {
    "gpt_oss": {"hidden_size": 64, "intermediate_size": 96},
    "deepseek_v3": {"moe_intermediate_size": 256},
}
FAMILIES: dict[StoredForm, str] = {"mxfp4": "gpt_oss", "fp8": "deepseek_v3"}
PROMPTS = ((1, 5, 9), (1, *range(20, 60)))
Tensors = dict[str, Tensor]


def mxfp4(tensors: Tensors, generator: torch.Generator) -> dict[str, object]:
    """In the place of the experts' matrices of gpt-oss, whose rows become outputs."""
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        num_experts, num_in, num_out = tensors.pop(name).shape
        shape = num_experts, num_out, num_in // 32
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator)
        scales = torch.randint(118, 124, shape, generator=generator)
        tensors |= {f"{name}_blocks": blocks.to(torch.uint8), f"{name}_scales": scales.to(torch.uint8)}
    return {"quant_method": "mxfp4"}


def fp8(tensors: Tensors, generator: torch.Generator) -> dict[str, object]:
    """In the place of the experts' matrices; blocks have few rows, so that there are many."""
    for name in [name for name in tensors if ".mlp.experts." in name]:
        rows, columns = tensors[name].shape
        scale = torch.rand(-(-rows // 24), -(-columns // 128), generator=generator) / 1024
        values = random_matrix("fp8", rows, columns, generator).bytes_Ob.view(torch.float8_e4m3fn)
        tensors |= {name: values, f"{name}_scale_inv": scale}
    return {"quant_method": "fp8", "weight_block_size": [24, 128]}


QUANTISED: dict[StoredForm, Callable[[Tensors, torch.Generator], dict[str, object]]] = {
    "mxfp4": mxfp4,
    "fp8": fp8,
}


@pytest.fixture(scope="module", params=STORED_FORMS)
def form(request: pytest.FixtureRequest) -> StoredForm:
    found: StoredForm = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(form: StoredForm, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write(tmp_path_factory.mktemp(form), form))


def write(folder: Path, form: StoredForm) -> Path:
    case = CASES[FAMILIES[form]]
    case = replace(case, sizes={**case.sizes, **SIZES[case.name]})
    case.write(case.make_model(), folder, max_shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = QUANTISED[form](tensors, torch.Generator().manual_seed(5))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def same(found: list[Generated], expected: list[Generated]) -> bool:
    return all(
        (mine.tokens, mine.logprobs) == (other.tokens, other.logprobs)
        for mine, other in zip(found, expected, strict=True)
    )


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_change_nothing_and_rounding_little(
    checkpoint: Checkpoint, form: StoredForm, dtype: DtypeName
) -> None:
    config = replace(CONFIG, kernels="native", dtype=dtype, expert_dtype=form)
    alone = generate(checkpoint, config, prompts=PROMPTS)
    for slices in (1, 2) if form == "fp8" else (1, 3):
        cut = replace(config, expert_slices=slices)
        here = generate(checkpoint, cut, prompts=PROMPTS)
        assert same(generate(checkpoint, cut, num_workers=2, prompts=PROMPTS), here)
        assert slices > 1 or same(here, alone)
    exact = generate(checkpoint, replace(config, expert_dtype="model"), prompts=PROMPTS)
    differences = [
        abs(mine.logprobs[0] - other.logprobs[0]) for mine, other in zip(alone, exact, strict=True)
    ]
    assert max(differences) < (0.05 if dtype == "bfloat16" or form == "mxfp4" else 1e-4)
    # Rows of 8 bits show; the last bits of FP8's sums need not.
    assert form == "fp8" or max(differences) > 0


def test_torch_computes_with_the_numbers(checkpoint: Checkpoint, form: StoredForm) -> None:
    found, exact = (
        generate(checkpoint, replace(CONFIG, kernels="torch", expert_dtype=each), prompts=PROMPTS)
        for each in (form, "model")
    )
    assert same(found, exact)


@needs_native
def test_memory_is_that_of_the_file(checkpoint: Checkpoint, form: StoredForm) -> None:
    """And what operators are told. Each output of a block of fp8 has the scale, and rows here are narrow."""
    config, kernels = checkpoint.config, choose_kernels("native", "cpu", 1)
    module = ExpertModule(config.moe_layers[0], 0, 0, 0, None)
    _, num_bytes = load_module(checkpoint, module, torch.bfloat16, "cpu", kernels, form=form)
    assert num_bytes == footprint(config, torch.bfloat16, form).expert_bytes
    rows = describe(checkpoint)["memory"]["served_as"]
    assert [row["expert_bytes"] for row in rows if row["expert_dtype"] == form] == [num_bytes]
    of_file = checkpoint.experts_bytes / config.num_expert_modules
    assert of_file * 0.9 < num_bytes < of_file * (1.02 if form == "mxfp4" else 1.1)


def test_what_is_not_stored_so_is_refused_by_what_it_is(checkpoint: Checkpoint, form: StoredForm) -> None:
    [other] = set(STORED_FORMS) - {form}
    has = {"mxfp4": "mxfp4", "fp8": "fp8 in blocks of 24 x 128"}[form]
    for path, asked, found in (
        (checkpoint.path, other, has),
        (Path("demo/checkpoint"), form, "bfloat16"),
    ):
        with pytest.raises(ConfigError) as caught, opened(path, EngineConfig(expert_dtype=asked)):
            pass
        message = str(caught.value)
        assert message.startswith(f"expert_dtype: {path}: {asked} is for experts that are stored in it")
        assert message.endswith(f"these are in {found}")
        with pytest.raises(CheckpointError, match=f"{asked} is for experts that are stored in it"):
            load_local_experts(
                Checkpoint.open(path), torch.float32, "cpu", choose_kernels("native", "cpu", 1), form=asked
            )


def opened(path: Path, config: EngineConfig) -> AbstractContextManager[object]:
    return open_experts(Checkpoint.open(path), config, WorkersConfig(num_workers=0))


def test_slices_that_would_cut_a_block_are_refused(checkpoint: Checkpoint, form: StoredForm) -> None:
    config = EngineConfig(expert_dtype=form, expert_slices=2 if form == "mxfp4" else 4)
    message = "hidden units would cut blocks of"
    with pytest.raises(ConfigError, match=message), opened(checkpoint.path, config):
        pass
    with opened(checkpoint.path, replace(config, expert_dtype="q8")):
        pass


def test_no_module_of_a_file_takes_the_place_of_one(
    checkpoint: Checkpoint, form: StoredForm, tmp_path: Path
) -> None:
    changing = Changing.open(checkpoint.path, "native", form=form)
    save_file(checkpoint.read_expert(checkpoint.config.moe_layers[0], 1), tmp_path / "module")
    with pytest.raises(ExchangeError, match=f"experts are kept in {form}, which modules of files are not in"):
        changing.exchange.replace(checkpoint.config.moe_layers[0], 0, str(tmp_path / "module"))
    file = ExpertFile(str(tmp_path / "module"), 1, "")
    module = ExpertModule(checkpoint.config.moe_layers[0], 9, 0, 1, file)
    with pytest.raises(CheckpointError, match="has plain numbers, and experts are kept in"):
        load_module(checkpoint, module, torch.float32, "cpu", choose_kernels("native", "cpu", 1), form=form)
