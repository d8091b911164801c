"""What rounding costs is nothing for the reference itself, and something for 8 bits."""

import torch

from benchmarks.quality import REFERENCE, Way, compare, log_probs, windows
from moe_model.checkpoint.reader import Checkpoint


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
