"""A slice that is read of a folder is the slice of the expert, in every family, and reads fewer bytes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.reader import Checkpoint
from moe_model.families import family_of
from moe_model.layers.expert_ffn import UNIT_ROWS
from moe_model.layers.expert_slices import ExpertSlice
from tests.families.cases import CASES

# Matrices have a row for each input: hidden units are columns, so all of them is read.
TURNED = {"gpt_oss"}


@pytest.mark.parametrize("name", CASES)
def test_a_slice_of_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    checkpoint = Checkpoint.open(case.write(case.make_model(), tmp_path))
    num_slices = next(n for n in (2, 3, 5, 7) if checkpoint.config.d_ff % n == 0)
    layer = checkpoint.config.moe_layers[-1]
    counts = [0]
    real = ShardedTable.read_values

    def read_values(self: ShardedTable, name: str, begin: int, count: int) -> Tensor:
        counts[-1] += count
        return real(self, name, begin, count)

    monkeypatch.setattr(ShardedTable, "read_values", read_values)
    whole = checkpoint.read_expert(layer, 1, torch.float32)
    for index in range(num_slices):
        part = ExpertSlice(index, num_slices)
        counts.append(0)
        found = checkpoint.read_slice(layer, 1, part, torch.float32)
        expected = family_of(checkpoint.config).cut_expert(whole, part)
        assert found.keys() == expected.keys()
        for tensor, each in expected.items():
            assert torch.equal(found[tensor], each), (tensor, index)
            assert found[tensor].untyped_storage().nbytes() == each.nbytes
    in_part = {each for each in whole.keys() & UNIT_ROWS if name not in TURNED or each.endswith("bias")}
    of_units = sum(whole[each].numel() for each in in_part)
    assert counts[1:] == [counts[0] - of_units + of_units // num_slices] * num_slices
