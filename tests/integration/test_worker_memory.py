"""What a worker keeps of some hundred megabytes of experts: their bytes in each form, and 5 % more at most.

Measured in a process for each, by what the kernel counts of it beyond what it had before.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.footprint import footprint
from moe_model.layers.stored_matrix import random_matrix
from moe_model.names import ROUNDED_FORMS, WeightForm
from tests.native import needs_native

pytestmark = [pytest.mark.long, needs_native]

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_local_experts": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
# Of the tables beside the experts, and of memory that the C library has and nobody uses.
OTHER_MEMORY = 5_000_000
# It does not return the end of a thread's heap, where a loading thread has rounded its last matrix. That does
# not grow with the number of experts.
END_OF_HEAPS = 27_000_000

MEASURE = """
import gc, os, sys, torch
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import choose_kernels
from moe_model.versions.expert_versions import checkpoint_modules

def kept():
    gc.collect()
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(fields["RssAnon"].split()[0])

folder, form = sys.argv[1:]
torch.set_num_threads(1)
config = Checkpoint.open(folder).config
choose_kernels("native", "cpu", 1)
before = kept()
worker = ExpertWorker(WorkerSpec(0, folder, torch.bfloat16, num_threads=1, kernels="native", form=form))
keys = [(layer, expert) for layer in range(config.n_layers) for expert in range(config.n_experts)]
worker.load(checkpoint_modules(keys))
print(kept() - before)
"""


def plain(_tensors: dict[str, Tensor]) -> dict[str, object]:
    return {}


def mxfp4(tensors: dict[str, Tensor]) -> dict[str, object]:
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        num_experts, num_in, num_out = tensors.pop(name).shape
        matrix = random_matrix("mxfp4", num_experts * num_out, num_in, torch.Generator())
        tensors[f"{name}_blocks"] = matrix.bytes_Ob.view(num_experts, num_out, num_in // 32, 16)
        tensors[f"{name}_scales"] = matrix.scale_OB.view(num_experts, num_out, num_in // 32)
    return {"quant_method": "mxfp4"}


def fp8(tensors: dict[str, Tensor]) -> dict[str, object]:
    for name in [name for name in tensors if ".experts." in name]:
        num_out, num_in = tensors[name].shape
        matrix = random_matrix("fp8", num_out, num_in, torch.Generator())
        tensors[name] = matrix.bytes_Ob.view(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = matrix.scale_OB[::128].contiguous()
    return {"quant_method": "fp8", "weight_block_size": [128, 128]}


def written(
    folder: Path, model_type: str, store: Callable[[dict[str, Tensor]], dict[str, object]]
) -> Checkpoint:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES}), encoding="utf-8")
    export_checkpoint(
        RandomModel(config_like(folder), dtype=torch.bfloat16), folder / "model", ExportOptions()
    )
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    if quantised := store(tensors):
        save_file(tensors, path, metadata={"format": "pt"})
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = quantised
        (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Checkpoint.open(folder / "model")


@pytest.mark.parametrize(
    ("model_type", "store", "forms"),
    [("mixtral", plain, ROUNDED_FORMS), ("gpt_oss", mxfp4, ("mxfp4",)), ("mixtral", fp8, ("fp8",))],
    ids=["rounded", "mxfp4", "fp8"],
)
def test_a_worker_keeps_its_experts_and_little_else(
    model_type: str,
    store: Callable[[dict[str, Tensor]], dict[str, object]],
    forms: tuple[WeightForm, ...],
    tmp_path: Path,
) -> None:
    checkpoint = written(tmp_path / "of", model_type, store)
    for form in forms:
        held = footprint(checkpoint.config, torch.bfloat16, form).experts_bytes
        assert held > 75e6
        command = [sys.executable, "-c", MEASURE, str(checkpoint.path), form]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr
        kept = int(result.stdout)
        ends = END_OF_HEAPS if form in ("int8", "q8", "q4") else 0
        assert 0.95 * held <= kept <= 1.05 * held + OTHER_MEMORY + ends, form
    assert form not in ("mxfp4", "fp8") or held <= 1.05 * checkpoint.experts_bytes
