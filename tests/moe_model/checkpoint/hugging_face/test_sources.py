"""Where tensors of ours lie in those of others: items, halves, alternating rows, turned; in which bytes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_model.checkpoint.hugging_face.quantised import BlockFp8, Mxfp4, Quantisation
from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.hugging_face.sources import Finder, Found, read_found
from moe_model.errors import CheckpointError
from moe_model.families.hugging_face import Part, TensorSource
from tests.moe_model.checkpoint.hugging_face.written import write_folder

GENERATOR = torch.Generator().manual_seed(0)
# Items N, rows R and inputs I, no two alike.
N, R, I = 3, 7, 5  # noqa: E741
STACK = torch.randn(N, 2 * R, I, generator=GENERATOR)
PARTS: Mapping[Part, slice] = {
    "first_half": slice(None, R),
    "second_half": slice(R, None),
    "even": slice(0, None, 2),
    "odd": slice(1, None, 2),
}


def finder(folder: Path, tensors: Mapping[str, Tensor], quantisation: Quantisation | None = None) -> Finder:
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return Finder(ShardedTable(write_folder(folder, dense, shards=2)), quantisation)


def read(found: Found, dtype: torch.dtype = torch.float32) -> Tensor:
    return read_found({"ours": found}, dtype, "cpu", "folder")["ours"]


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("item", range(N))
def test_a_part_of_an_item(item: int, part: Part, is_transposed: bool, tmp_path: Path) -> None:
    stack = STACK.transpose(1, 2) if is_transposed else STACK
    source = TensorSource("x", item, part, is_transposed)
    found = finder(tmp_path, {"x": stack}).find((source,), (R, I))
    assert found.num_bytes == R * I * 4
    tensor = read(found)
    assert torch.equal(tensor, STACK[item, PARTS[part]])
    assert tensor.is_contiguous()
    assert tensor.untyped_storage().nbytes() == tensor.nbytes, "keeps no more than itself"
    assert torch.equal(read(found, torch.bfloat16), STACK[item, PARTS[part]].bfloat16())


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_tensor_that_is_not_stacked(part: Part, tmp_path: Path) -> None:
    tensors = {"x": STACK[0], "bias": STACK[0, :, 0]}
    both = finder(tmp_path, tensors)
    assert torch.equal(read(both.find((TensorSource("x", part=part),), (R, I))), STACK[0, PARTS[part]])
    bias = both.find((TensorSource("bias", part=part),), (R,))
    assert torch.equal(read(bias), STACK[0, PARTS[part], 0])


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_some_rows_of_a_part(part: Part, is_transposed: bool, tmp_path: Path) -> None:
    stack = STACK.transpose(1, 2) if is_transposed else STACK
    found = finder(tmp_path, {"x": stack}).find((TensorSource("x", 1, part, is_transposed),), (R, I))
    tensor = read(replace(found, rows=(2, 5)))
    assert torch.equal(tensor, STACK[1, PARTS[part]][2:5])
    assert tensor.untyped_storage().nbytes() == tensor.nbytes, "keeps no more than itself"


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_whole_item(is_transposed: bool, tmp_path: Path) -> None:
    stack = STACK.transpose(1, 2) if is_transposed else STACK
    source = TensorSource("x", 1, is_transposed=is_transposed)
    assert torch.equal(read(finder(tmp_path, {"x": stack}).find((source,), (2 * R, I))), STACK[1])
    # An item of a vector for each: [N, I].
    vectors = finder(tmp_path / "vectors", {"x": STACK[:, 0]})
    assert torch.equal(read(vectors.find((TensorSource("x", 2),), (I,))), STACK[2, 0])


@pytest.mark.parametrize("part", PARTS)
def test_of_4_bits_the_rows_are_outputs_though_those_of_16_are_not(part: Part, tmp_path: Path) -> None:
    """As gpt_oss is published: the same source for both."""
    blocks = torch.randint(0, 256, (N, 2 * R, 2, 16), dtype=torch.uint8, generator=GENERATOR)
    scales = torch.full((N, 2 * R, 2), 127, dtype=torch.uint8)
    packed = finder(tmp_path, {"x_blocks": blocks, "x_scales": scales}, Mxfp4())
    source = TensorSource("x", 1, part, is_transposed=True)
    codes = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-3).long()
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = magnitudes[codes % 8] * (1 - 2 * (codes // 8))
    found = packed.find((source,), (R, 64))
    assert torch.equal(read(found), values[1, PARTS[part]])
    assert torch.equal(read(replace(found, rows=(2, 5))), values[1, PARTS[part]][2:5])


@pytest.mark.parametrize("part", PARTS)
def test_of_8_bits_a_part_has_the_scales_of_its_rows(part: Part, tmp_path: Path) -> None:
    block = BlockFp8(4, 2)
    values = STACK.to(torch.float8_e4m3fn)
    scale = torch.rand(N, 4, 3, generator=GENERATOR)
    stacked = finder(tmp_path, {"x": values, "x_scale_inv": scale}, block)
    rows, columns = torch.arange(2 * R) // 4, torch.arange(I) // 2
    expected = values[2].float() * scale[2][rows[:, None], columns[None]]
    found = stacked.find((TensorSource("x", 2, part),), (R, I))
    assert torch.equal(read(found), expected[PARTS[part]])
    assert torch.equal(read(replace(found, rows=(2, 5))), expected[PARTS[part]][2:5]), "within two blocks"


def test_the_first_that_is_there_counts(tmp_path: Path) -> None:
    both = finder(tmp_path, {"b": STACK[0], "c": STACK[1]})
    alternatives = tuple(map(TensorSource, "abc"))
    assert torch.equal(read(both.find(alternatives, (2 * R, I))), STACK[0])
    with pytest.raises(CheckpointError, match="tensor 'x' is missing"):
        both.find((TensorSource("x"), TensorSource("y")), (R, I))


def test_of_alternating_rows_only_those_of_the_wanted_ones_are_read_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = finder(tmp_path, {"x": STACK}).find
    spans: list[tuple[int, int]] = []
    real = ShardedTable.read_values

    def read_values(self: ShardedTable, name: str, begin: int, count: int) -> Tensor:
        spans.append((begin, count))
        return real(self, name, begin, count)

    monkeypatch.setattr(ShardedTable, "read_values", read_values)
    parts: tuple[Part, ...] = ("even", "odd")
    found: dict[str, Found] = {
        part: replace(find((TensorSource("x", 1, part),), (R, I)), rows=(2, 5)) for part in parts
    }
    tensors = read_found(found, torch.float32, "cpu", "folder")
    assert spans == [((2 * R + 4) * I, 6 * I)]
    assert all(torch.equal(tensors[part], STACK[1, PARTS[part]][2:5]) for part in parts)


def test_an_item_is_read_once_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for between its parts."""
    table = ShardedTable(write_folder(tmp_path, {"x": STACK, "y": 2 * STACK}))
    spans: list[tuple[str, int, int]] = []
    real = ShardedTable.read_values

    def read_values(self: ShardedTable, name: str, begin: int, count: int) -> Tensor:
        spans.append((name, begin, count))
        return real(self, name, begin, count)

    monkeypatch.setattr(ShardedTable, "read_values", read_values)
    find, of_item = Finder(table, None).find, 2 * R * I
    whole, half = ("y", of_item, of_item), of_item // 2
    wanted: tuple[tuple[tuple[Part, Part], list[tuple[str, int, int]]], ...] = (
        (("odd", "even"), [("x", of_item, of_item), whole]),
        (("second_half", "first_half"), [("x", of_item + half, half), ("x", of_item, half), whole]),
    )
    for (first, last), expected in wanted:
        spans.clear()
        sources = {"first": ("x", first), "between": ("y", "all"), "last": ("x", last)}
        found = {
            ours: find((TensorSource(name, 1, part),), (2 * R if part == "all" else R, I))
            for ours, (name, part) in sources.items()
        }
        tensors = read_found(found, torch.float32, "cpu", "folder")
        assert spans == expected
        assert list(tensors) == ["first", "between", "last"]
        assert torch.equal(tensors["last"], STACK[1, PARTS[last]])


@pytest.mark.parametrize(
    ("source", "shape", "message"),
    [
        (TensorSource("x", N), (2 * R, I), "has shape [3, 14, 5], expected [4, 14, 5]"),
        (TensorSource("x", 0), (R, I), "has shape [3, 14, 5], expected [3, 7, 5]"),
        (TensorSource("x", 0, "even"), (2 * R, I), "has shape [3, 14, 5], expected [3, 28, 5]"),
        (TensorSource("x", 0, is_transposed=True), (2 * R, I), "[3, 14, 5], expected [3, 5, 14]"),
        (TensorSource("x"), (2 * R, I), "has shape [3, 14, 5], expected [14, 5]"),
    ],
)
def test_another_shape(source: TensorSource, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        finder(tmp_path, {"x": STACK}).find((source,), shape)
    assert message in str(caught.value)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    stack = STACK.clone()
    stack[1, 3, 2] = torch.inf
    broken = finder(tmp_path, {"x": stack})
    read(broken.find((TensorSource("x", 0),), (2 * R, I)))
    with pytest.raises(CheckpointError, match="folder: tensor 'x' has values that are not finite as float32"):
        read(broken.find((TensorSource("x", 1),), (2 * R, I)))
    scales = torch.full((1, 2, 1), 255, dtype=torch.uint8)
    packed = {"x_blocks": torch.ones(1, 2, 1, 16, dtype=torch.uint8), "x_scales": scales}
    nan = finder(tmp_path / "packed", packed, Mxfp4()).find((TensorSource("x", 0),), (2, 32))
    with pytest.raises(CheckpointError, match="tensor 'x' has values that are not finite"):
        read(nan)


def sources(*items: int, parts: tuple[Part, ...]) -> list[TensorSource]:
    return [TensorSource("x", item, part) for item in items for part in parts]


@pytest.mark.parametrize("parts", [("even", "odd"), ("first_half", "second_half")])
def test_all_of_a_folder_is_used(parts: tuple[Part, ...], tmp_path: Path) -> None:
    stacked = finder(tmp_path, {"x": STACK, "rope": STACK})

    def check(items: tuple[int, ...], others: set[str]) -> None:
        found = [stacked.find((source,), (R, I)) for source in sources(*items, parts=parts)]
        stacked.check_whole(found, frozenset(others))

    check((0, 1, 2), {"rope"})
    with pytest.raises(CheckpointError, match="unknown tensor 'rope'"):
        check((0, 1, 2), set())
    with pytest.raises(CheckpointError, match="tensor 'x' has 3 items, the model has 2"):
        check((0, 1), {"rope"})


def test_scales_that_belong_to_nothing(tmp_path: Path) -> None:
    folder = finder(tmp_path, {"x": STACK[0], "x_scale_inv": STACK[0, :1, :1]}, BlockFp8(128, 128))
    found = folder.find((TensorSource("x"),), (2 * R, I))
    with pytest.raises(CheckpointError, match="unknown tensor 'x_scale_inv'"):
        folder.check_whole([found], frozenset())
