"""What rounding costs is nothing for the reference itself, and something for 8 bits."""

from pathlib import Path

import torch

from benchmarks.quality import REFERENCE, Way, compare, log_probs, windows
from moe_model.checkpoint.reader import Checkpoint
from moe_model.names import WeightForm
from tests.native import needs_native


def test_the_reference_diverges_from_itself_by_nothing_and_8_bits_by_something() -> None:
    checkpoint = Checkpoint.open("demo/checkpoint")
    found = windows(checkpoint, "def read(path):\n    return path.open().read()\n" * 20, 32, 2)
    assert [ids.shape for ids in found] == [(1, 32), (1, 32)]
    expected = list(log_probs(checkpoint, REFERENCE, found))
    same = compare(checkpoint, REFERENCE, found, expected)
    assert (same.divergence, same.same_best) == (0.0, 1.0)
    rounded = compare(checkpoint, Way("int8", "torch", torch.float32, "int8"), found, expected)
    assert 0 < rounded.divergence < 0.05
    assert rounded.perplexity != same.perplexity


@needs_native
def test_blocks_cost_what_was_promised() -> None:
    checkpoint = Checkpoint.open("demo/checkpoint")
    found = windows(checkpoint, Path("LICENSE").read_text(encoding="utf-8"), 256, 4)
    expected = list(log_probs(checkpoint, REFERENCE, found))
    forms: tuple[WeightForm, ...] = ("q8", "q4")
    q8, q4 = (
        compare(checkpoint, Way(form, "native", torch.float32, form), found, expected) for form in forms
    )
    assert 0 < q8.divergence < 2e-4 < q4.divergence < 2e-2
    assert q8.same_best > 0.98 > q4.same_best > 0.85
