"""An import reads one expert at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_model.config import ModelConfig
from tests.moe_model.source_files import state_dict, write_assembled, write_parts, write_safetensors

CONFIG = ModelConfig(
    d_model=256, n_heads=4, n_layers=4, d_ff=512, n_experts=12, top_k=2, vocab_size=100, max_seq_len=8
)

# In a process of its own, whose allocator has no free memory in which a growth could hide.
MEASURE = """
import sys
from pathlib import Path
from moe_model.checkpoint.importer import ImportOptions, import_checkpoint

def private_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

folder, before, seen = Path(sys.argv[1]), private_bytes(), []
for name, router in (("assembled_model.pt", None), ("assembled_model.safetensors", None), ("", "uniform")):
    options = ImportOptions(router=router, force=True)
    import_checkpoint(folder / name, sys.argv[2], options, lambda *_: seen.append(private_bytes()))
    print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(source: Path, dest: Path) -> None:
    tensors = state_dict(CONFIG)
    write_assembled(source, CONFIG, tensors)
    write_safetensors(source, tensors, dropped="shared.lm_head.weight")
    write_parts(source, CONFIG, tensors)
    command = [sys.executable, "-c", MEASURE, str(source), str(dest)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    growths = [int(line) for line in result.stdout.split()]
    expert = (dest / "experts/layer_0000/expert_0000.safetensors").stat().st_size
    shared = (dest / "shared.safetensors").stat().st_size
    whole = shared + CONFIG.n_layers * CONFIG.n_experts * expert
    assert len(growths) == 3
    assert max(growths) < 3 * (shared + expert) < whole / 2
