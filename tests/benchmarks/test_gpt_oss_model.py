"""The small gpt-oss that figures of quality are of: rounded to the nearest, and a folder as any other."""

from pathlib import Path

import torch

from benchmarks.gpt_oss_model import store_in_mxfp4, to_mxfp4, train
from benchmarks.quality import ways_of
from moe_model.checkpoint.reader import Checkpoint
from moe_model.layers.stored_matrix import StoredMatrix
from tests.native import needs_native
from tests.stored_numbers import numbers


def test_values_are_the_nearest_that_their_block_has() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes_E11 = 2.0 ** torch.arange(-3, 3).view(-1, 1, 1)
    weight_EOI = sizes_E11 * torch.randn(6, 5, 64, generator=generator)
    weight_EOI[0, 0, :32] = 0
    blocks_EONb, scale_EON = to_mxfp4(weight_EOI)
    for expert, weight_OI in enumerate(weight_EOI):
        found_OI = numbers(StoredMatrix("mxfp4", blocks_EONb[expert].flatten(1), scale_EON[expert]))
        # The largest of a block is at most 8 times its scale, and becomes 6 times that.
        power_OI = (2.0 ** (scale_EON[expert].double() - 127)).repeat_interleave(32, dim=1)
        ratio_OI = weight_OI.abs() / power_OI
        assert ratio_OI.max() < 8
        step_OI = torch.where(ratio_OI < 2, 0.5, torch.where(ratio_OI < 4, 1.0, 2.0))
        error_OI = (found_OI - weight_OI).abs() / power_OI
        assert (error_OI <= torch.where(ratio_OI > 6, 2.0, step_OI / 2)).all()
        assert torch.equal(found_OI.sign(), torch.where(found_OI == 0, 0, weight_OI.sign()))


@needs_native
def test_what_is_written_is_kept_as_it_is_stored(tmp_path: Path) -> None:
    train(torch.randint(0, 4096, (2000,)), 1, tmp_path)
    store_in_mxfp4(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.expert_form == "mxfp4"
    stored = {way.form for way in ways_of(checkpoint)}
    assert "mxfp4" in stored
    assert "fp8" not in stored
    assert {way.form for way in ways_of(Checkpoint.open("demo/checkpoint"))} == stored - {"mxfp4"}
