"""gpt-oss as it is published: experts in 4 bits, read by transformers and by us from the same folder.

Shapes: E experts, O outputs, I inputs.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import KernelChoice, choose_kernels
from tests.families.case import logits_of
from tests.families.gpt_oss_case import GPT_OSS
from tests.families.ours import CONFIG, generate
from tests.families.test_transformers import TOLERANCE, check_generated, random_ids
from tests.native import KERNELS

# Widths are whole blocks of 32 values, of different numbers.
CASE = replace(GPT_OSS, sizes={**GPT_OSS.sizes, "hidden_size": 64, "intermediate_size": 96})
# As in the published files.
_QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every code of 4 bits, with either half of each byte, and scales of several sizes."""
    folder = tmp_path_factory.mktemp("mxfp4")
    CASE.write(CASE.make_model(), folder, max_shard_size="1GB")
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(3)
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        n_experts, num_inputs, num_outputs = tensors.pop(name).shape
        num_blocks = n_experts, num_outputs, num_inputs // 32
        for kind, low, high, shape in (
            ("blocks", 0, 256, (*num_blocks, 16)),
            ("scales", 120, 126, num_blocks),
        ):
            values = torch.randint(low, high, shape, generator=generator)
            tensors[f"{name}_{kind}"] = values.to(torch.uint8)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _QUANTIZATION
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """With each 4-bit value as the float32 number that it stands for."""
    model = transformers.GptOssForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    model.set_experts_implementation("eager")
    return model.eval()


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_and_tokens_are_those_of_transformers(
    folder: Path, theirs: Any, kernels: KernelChoice
) -> None:
    ids_BS = random_ids(CASE)
    ours = AssembledModel.from_checkpoint(folder, kernels=choose_kernels(kernels, "cpu"))
    expected_BSV = logits_of(theirs, ids_BS)
    error = (ours.forward(ids_BS)[0] - expected_BSV).abs().max() / expected_BSV.abs().max()
    assert error < TOLERANCE
    config = replace(CONFIG, kernels=kernels)
    check_generated(theirs, generate(Checkpoint.open(folder), config, num_workers=2))
