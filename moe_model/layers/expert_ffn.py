"""The feed-forward networks that experts are, over parts of any kernels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.kernels.base import Linear, Norm
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.layers.specs import Activation, ExpertSpec
from moe_model.layers.stored_matrix import SCALE, StoredMatrix, stored_matrix
from moe_model.names import WeightForm, stored_form

# Tensors that have a row, or a value, for each hidden unit.
UNIT_ROWS = frozenset({"up.weight", "up.bias", "gate.weight", "gate.bias"})


@dataclass(frozen=True, slots=True)
class ExpertFFN:
    """One expert as its spec says; the activation is in `gate`, or in `up` where there is no gate.

    The residual is the layer's.
    """

    spec: ExpertSpec
    norm: Norm | None
    gate: Linear | None
    up: Linear
    down: Linear

    def __call__(self, x_RD: Tensor) -> Tensor:
        n_RD = x_RD if self.norm is None else self.norm(x_RD)
        up_RF = self.up(n_RD)
        return self.down(up_RF if self.gate is None else gated(self.spec, self.gate(n_RD), up_RF))


def gated(spec: ExpertSpec, gate_RF: Tensor, up_RF: Tensor) -> Tensor:
    """The hidden values of a gated expert; `gate_RF` has been through `gate_activation`."""
    if spec.limit is None:
        return gate_RF * up_RF
    limit, alpha = spec.limit.limit, spec.limit.alpha
    gate_RF, up_RF = gate_RF.clamp(max=limit), up_RF.clamp(-limit, limit)
    return (up_RF + 1) * (gate_RF * torch.sigmoid(alpha * gate_RF))


def gate_activation(spec: ExpertSpec) -> Activation:
    """Of a gated expert: a limit has an activation of its own."""
    return spec.activation if spec.limit is None else "none"


def tensor_names(spec: ExpertSpec) -> tuple[str, ...]:
    """The canonical names of an expert's tensors."""
    names = [f"{part}.weight" for part in ("gate", "up", "down") if part != "gate" or spec.is_gated]
    if spec.has_biases:
        names += [name.replace("weight", "bias") for name in names]
    if spec.norm is not None:
        names.append("norm.weight")
        if spec.norm.kind == "layer_norm":
            names.append("norm.bias")
    return tuple(names)


def check_expert(spec: ExpertSpec, tensors: Mapping[str, Tensor], form: WeightForm = "model") -> None:
    """The tensors are just those of the spec, stored in `form` if it is such a one, and the matrices fit each
    other."""
    names = tensor_names(spec)
    matrices = [name for name in names if name in ("gate.weight", "up.weight", "down.weight")]
    scales = [name + SCALE for name in matrices if stored_form(form)]
    assert sorted(tensors) == sorted([*names, *scales]), sorted(tensors)
    shapes = {name: tuple(matrix_of(tensors, name, form).shape) for name in matrices}
    assert shapes["down.weight"] == shapes["up.weight"][::-1]
    assert not spec.is_gated or shapes["gate.weight"] == shapes["up.weight"]


def matrix_of(tensors: Mapping[str, Tensor], name: str, form: WeightForm) -> Tensor | StoredMatrix:
    """One of an expert's matrices, numbers that `form` may round, or in that form already."""
    stored = stored_form(form)
    return tensors[name] if stored is None else stored_matrix(tensors, name, stored)


def cut_expert(
    tensors: Mapping[str, Tensor], part: ExpertSlice, canonical: Callable[[str], str] = str
) -> dict[str, Tensor]:
    """A slice of an expert as tensors of an expert, by the same names and in memory of their own; `canonical`
    makes a name one of `ExpertSpec`. Of what is stored in blocks, slices are whole blocks."""
    return {name: _cut(tensor, canonical(name.removesuffix(SCALE)), part) for name, tensor in tensors.items()}


def _cut(tensor: Tensor, name: str, part: ExpertSlice) -> Tensor:
    if name in UNIT_ROWS:
        return tensor[part.units(len(tensor))].clone()
    if name == "down.weight":
        return tensor[:, part.units(tensor.shape[1])].clone(memory_format=torch.contiguous_format)
    return torch.zeros_like(tensor) if name == "down.bias" and part.index else tensor.clone()
