"""Banks with other modules than before, over all kernels. Shapes: T tokens, R rows, E experts, D d_model."""

from collections.abc import Mapping

import pytest
import torch

from moe_model import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.base import ExpertBank, Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.kernels.grouped import GroupedBank
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.layers.router import Routing
from tests.models import random_weights
from tests.native import KERNELS

E, D = 4, 16
CONFIG = ModelConfig(
    d_model=D, n_heads=2, n_layers=2, d_ff=32, n_experts=E, top_k=2, vocab_size=8, max_seq_len=8
)
X_TD = torch.linspace(-1, 1, 7 * D).view(7, D)


class Grouped(TorchKernels):
    """The kernels of a GPU, without one."""

    name = "grouped"

    def bank(self, experts: Mapping[ExpertKey, Expert]) -> ExpertBank:
        return GroupedBank.of(experts)


@pytest.fixture(params=[*KERNELS, "grouped"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "grouped":
        return Grouped()
    return choose_kernels(request.param, "cpu")


def modules(kernels: Kernels) -> dict[ExpertKey, Expert]:
    weights = random_weights(CONFIG).experts
    return {key: family_of(CONFIG).build_expert(CONFIG, found, kernels) for key, found in weights.items()}


def says(bank: ExpertBank, layer: int, slot: int) -> torch.Tensor:
    return bank.run_pairs(layer, X_TD, None, ((slot, len(X_TD)),))


def test_a_bank_has_what_it_is_given_and_the_old_one_what_it_had(kernels: Kernels) -> None:
    all_of = modules(kernels)
    old = kernels.bank({(0, 0): all_of[0, 0], (0, 2): all_of[0, 2], (1, 1): all_of[1, 1]})
    new = old.with_layer(0, (2, 2**40), {2**40: all_of[0, 1]})
    full = kernels.bank(all_of)
    assert torch.equal(says(new, 0, 2), says(full, 0, 2))
    assert torch.equal(says(new, 0, 2**40), says(full, 0, 1))
    assert torch.equal(says(new, 1, 1), says(full, 1, 1))
    assert torch.equal(says(old, 0, 0), says(full, 0, 0))
    with pytest.raises(KeyError):
        says(new, 0, 0)
    with pytest.raises(KeyError):
        says(old, 0, 2**40)


def test_a_layer_may_go_and_come(kernels: Kernels) -> None:
    all_of = modules(kernels)
    none = kernels.bank({(0, 0): all_of[0, 0]}).with_layer(0, (), {})
    with pytest.raises(KeyError):
        says(none, 0, 0)
    back = none.with_layer(1, (9,), {9: all_of[1, 3]})
    assert torch.equal(says(back, 1, 9), says(kernels.bank(all_of), 1, 3))


def test_a_new_version_of_a_slot_takes_its_place(kernels: Kernels) -> None:
    all_of = modules(kernels)
    bank = kernels.bank(all_of)
    new = bank.with_layer(0, (0, 1, 2, 3), {2: all_of[1, 2]})
    assert torch.equal(says(new, 0, 2), says(bank, 1, 2))
    assert torch.equal(says(new, 0, 3), says(bank, 0, 3))


def test_tokens_choose_columns_whatever_the_slots(kernels: Kernels) -> None:
    """Column c is the c-th slot of the layer; one that is absent has the first id that is no column."""
    all_of = modules(kernels)
    ids_TK = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [3, 4], [4, 4], [1, 0]])
    weights_TK = torch.softmax(torch.linspace(0, 1, 14).view(7, 2), 1)
    routing = Routing(weights_TK, ids_TK, torch.zeros(7, E))
    plain = kernels.bank(all_of)
    renamed = {70: all_of[0, 0], 7: all_of[0, 1], 3: all_of[0, 2], 2**33: all_of[0, 3]}
    columns = kernels.bank({(0, slot): module for slot, module in renamed.items()})
    assert torch.equal(columns.run_tokens(0, X_TD, routing), plain.run_tokens(0, X_TD, routing))
    swapped = columns.with_layer(0, (7, 70, 3, 2**33), {})
    other_TK = torch.tensor([1, 0, 2, 3, 4])[ids_TK]
    other = Routing(weights_TK, other_TK, torch.zeros(7, E))
    assert torch.equal(swapped.run_tokens(0, X_TD, other), plain.run_tokens(0, X_TD, routing))


@pytest.mark.parametrize("num_slices", [2, 4])
def test_slices_are_added_up_in_their_order(kernels: Kernels, num_slices: int) -> None:
    """Bit by bit what each slice's bank alone says, whatever the slots; absent experts included."""
    family, weights = family_of(CONFIG), random_weights(CONFIG).experts
    cut = {
        (index, expert): family.build_expert(
            CONFIG, family.cut_expert(weights[0, expert], ExpertSlice(index, num_slices)), kernels
        )
        for index in range(num_slices)
        for expert in range(E)
    }
    ids_TK = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [3, 4], [4, 4], [1, 0]])
    weights_TK = torch.softmax(torch.linspace(0, 1, 14).view(7, 2), 1)
    routing = Routing(weights_TK, ids_TK, torch.zeros(7, E))
    together = kernels.bank({(0, expert * num_slices + index): each for (index, expert), each in cut.items()})
    alone = [
        kernels.bank({(0, e): cut[index, e] for e in range(E)}).run_tokens(0, X_TD, routing)
        for index in range(num_slices)
    ]
    expected = alone[0]
    for each in alone[1:]:
        expected = expected + each
    assert torch.equal(together.run_tokens(0, X_TD, routing), expected)


def test_a_column_may_be_added(kernels: Kernels) -> None:
    all_of = modules(kernels)
    more = kernels.bank(all_of).with_layer(0, (0, 1, 2, 3, 8), {8: all_of[1, 0]})
    ids_TK, weights_TK = torch.full((7, 1), 4), torch.ones(7, 1)
    y_TD = more.run_tokens(0, X_TD, Routing(weights_TK, ids_TK, torch.zeros(7, E + 1)))
    torch.testing.assert_close(y_TD, says(more, 0, 8), rtol=1e-5, atol=1e-6)
