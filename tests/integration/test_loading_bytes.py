"""What processes read and keep of a Hugging Face folder: workers their experts, the coordinator the rest.

Each is measured in a process of its own, by what the kernel counts of it.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.footprint import footprint
from moe_model.kernels.choice import HAS_NATIVE
from moe_model.names import WeightForm

SIZES = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1024,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "vocab_size": 40000,
    "tie_word_embeddings": False,
}
# Matrices of each expert by itself; stacks of all experts of a layer, in x out, with alternating outputs.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"max_position_embeddings": 256},
    "gpt_oss": {"max_position_embeddings": 256, "initial_context_length": 64, "head_dim": 64},
}
SHARD_BYTES = 20_000_000
# What is read beside: configs, headers and samples of all files.
OTHER_BYTES = 2_000_000
# What tables keep beside, and what the C library has of freed memory until it is used again.
OTHER_MEMORY, FREED_MEMORY = 10_000_000, 34_000_000
# Of what the parent has freed, in pages that are not whole.
REUSED_MEMORY = 3_000_000
# What is rounded is rounded piece by piece, several at once, each for a moment in float32 and more than once.
# Of the last ones the C library keeps the ends of its heaps.
ROUNDED_MEMORY = 12_000_000

MEASURE = """
import gc, json, os, sys
import torch
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import choose_kernels
from moe_model.loading import load_model
from moe_model.machine import give_back_freed_memory
from moe_model.versions.expert_versions import checkpoint_modules

folder = sys.argv[1]

def counted():
    fields = {}
    for name in ("io", "status"):
        for line in open(f"/proc/self/{name}"):
            key, _, value = line.partition(":")
            fields[key] = value.split()[0] if value.split() else ""
    # Pages of files, the libraries', come to a child only as it touches them.
    files = int(fields["RssFile"]) + int(fields["RssShmem"])
    return int(fields["rchar"]), 1024 * int(fields["RssAnon"]), 1024 * (int(fields["VmHWM"]) - files)

def worker(experts, form="model"):
    config = Checkpoint.open(folder).config
    found = ExpertWorker(WorkerSpec(0, folder, torch.bfloat16, num_threads=1, form=form))
    found.load(checkpoint_modules([(layer, e) for layer in range(config.n_layers) for e in experts]))
    return found

def coordinator():
    return load_model(Checkpoint.open(folder), None, torch.bfloat16, "cpu", choose_kernels("auto", "cpu", 1))

ROLES = {"coordinator": coordinator, "0": lambda: worker((0, 1, 2)), "1": lambda: worker((3, 4, 5))}
ROLES |= {form: lambda form=form: worker((0, 1, 2), form) for form in sys.argv[2:]}
# A child has no threads of its parent's, and would wait for them.
torch.set_num_threads(1)
# The libraries and the modules are there before anything is counted.
Checkpoint.open(folder)
choose_kernels("auto", "cpu", 1)
for name, role in ROLES.items():
    if os.fork() == 0:
        # Torch makes its pool anew after a fork, and two threads that ask for it first at once find none.
        torch.set_num_threads(1)
        # What the parent has freed would be used again, and not be counted.
        give_back_freed_memory()
        open("/proc/self/clear_refs", "w").write("5")
        before = counted()
        model = role()
        read, _, peak = counted()
        gc.collect()
        kept = counted()[1]
        print(json.dumps([name, read - before[0], kept - before[1], peak - before[1]]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@dataclass(frozen=True)
class Counted:
    """Bytes: read, kept, and taken at most."""

    read: int
    kept: int
    peak: int


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of bfloat16, in several files."""
    path = tmp_path_factory.mktemp(request.param)
    settings = {"model_type": request.param, **SIZES, **FAMILIES[request.param]}
    (path / "config.json").write_text(json.dumps(settings))
    model = RandomModel(config_like(path), dtype=torch.bfloat16)
    export_checkpoint(model, path / "model", ExportOptions(shard_bytes=SHARD_BYTES))
    return path / "model"


def test_each_process_reads_and_keeps_its_own_part(folder: Path) -> None:
    forms: dict[str, WeightForm] = {"q8": "q8", "q4": "q4"} if HAS_NATIVE else {}
    command = [sys.executable, "-c", MEASURE, str(folder), *forms]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    found = {name: Counted(*numbers) for name, *numbers in map(json.loads, result.stdout.splitlines())}
    checkpoint = Checkpoint.open(folder)
    assert len([name for name in checkpoint.files if name.endswith(".safetensors")]) > 3
    sizes = footprint(checkpoint.config, torch.bfloat16)
    stored_shared = sum(entry.size for entry in checkpoint.files.values()) - checkpoint.experts_bytes
    for name, counted in found.items():
        is_worker = name != "coordinator"
        experts_bytes = footprint(checkpoint.config, torch.bfloat16, forms.get(name, "model")).experts_bytes
        promised = experts_bytes // 2 if is_worker else sizes.shared_bytes
        stored = checkpoint.experts_bytes // 2 if is_worker else stored_shared
        assert stored - OTHER_BYTES <= counted.read <= stored + OTHER_BYTES, name
        rounded = ROUNDED_MEMORY if name in forms else 0
        assert 0.9 * promised - REUSED_MEMORY <= counted.kept <= promised + OTHER_MEMORY + rounded, name
        assert counted.peak <= promised + 2 * sizes.expert_bytes + FREED_MEMORY + rounded, name
