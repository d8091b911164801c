"""The feed-forward networks that experts are, over parts of any kernels."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.kernels.base import Linear, Norm
from moe_model.layers.specs import ExpertSpec


@dataclass(frozen=True, slots=True)
class ExpertFFN:
    """One expert as its spec says; the activation is that of `gate`, or of `up` where there is no gate.

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
        return self.down(up_RF if self.gate is None else self.gate(n_RD) * up_RF)


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


def check_expert(spec: ExpertSpec, tensors: Mapping[str, Tensor]) -> None:
    """The tensors are just those of the spec, and the matrices fit each other.

    Raises ConfigError for a spec that no kernels of ours compute.
    """
    if spec.limit is not None:
        raise ConfigError("experts: a limit of their hidden values cannot be computed")
    assert sorted(tensors) == sorted(tensor_names(spec)), sorted(tensors)
    shape_FD = tensors["up.weight"].shape
    assert tensors["down.weight"].shape == shape_FD[::-1]
    assert not spec.is_gated or tensors["gate.weight"].shape == shape_FD
