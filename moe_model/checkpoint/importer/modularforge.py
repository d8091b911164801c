"""What ModularForge calls the tensors of an assembled model, and what they must be.

Shapes: D d_model, E experts, S max_seq_len.
"""

import torch

from moe_model.checkpoint.tensor_table import TensorTable, check_table
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.families.base import Shapes
from moe_model.layers.dense import sinusoidal_positions

EMBEDDING = "shared.token_embedding.weight"
HEAD = "shared.lm_head.weight"
POSITIONS = "shared.pos_encoding.pe"
SHARED_PREFIX = "shared."
# What the names of all tensors of an assembled model, and those of the part that is shared, begin with.
ASSEMBLED_ROOTS = frozenset({"shared", "moe_layers"})
SHARED_ROOTS = frozenset({"token_embedding", "pos_encoding", "transformer_blocks", "output_norm", "lm_head"})
_POSITIONS_TOLERANCE = 1e-4


def gate_name(layer: int) -> str:
    return f"moe_layers.{layer}.router.gate.weight"


def norm_name(layer: int, part: str) -> str:
    return f"moe_layers.{layer}.ffn_norm.{part}"


def noise_name(layer: int) -> str:
    return f"moe_layers.{layer}.router.noise_weight.weight"


def expert_name(layer: int, expert: int, name: str) -> str:
    return f"moe_layers.{layer}.experts.{expert}.{name}"


def shared_names(config: ModelConfig) -> dict[str, str]:
    """Our name of every tensor of the shared part -> theirs."""
    names = {"embedding.weight": EMBEDDING}
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"shared.transformer_blocks.{layer}"
        names[f"{ours}.qkv.weight"] = f"{theirs}.attention.qkv_proj.weight"
        names[f"{ours}.out.weight"] = f"{theirs}.attention.out_proj.weight"
        names[f"{ours}.router.weight"] = gate_name(layer)
        for part in ("weight", "bias"):
            names[f"{ours}.attn_norm.{part}"] = f"{theirs}.attn_norm.{part}"
            # Each layer has two such norms in the files; the assembled model runs the MoE layer's own.
            names[f"{ours}.ffn_norm.{part}"] = norm_name(layer, part)
    return names | {f"output_norm.{part}": f"shared.output_norm.{part}" for part in ("weight", "bias")}


def shared_shapes(config: ModelConfig, table: TensorTable) -> Shapes:
    """Their shared part (without MoE layers): what is used and what is only checked."""
    ours = family_of(config).shared_shapes(config)
    shapes = {
        theirs: ours[name]
        for name, theirs in shared_names(config).items()
        if theirs.startswith(SHARED_PREFIX)
    }
    shapes[HEAD] = shapes[EMBEDDING]
    # A buffer of the module, with or without a leading batch axis.
    table_SD = (config.max_seq_len, config.d_model)
    flat = POSITIONS in table.names and len(table.shape(POSITIONS)) == 2
    shapes[POSITIONS] = table_SD if flat else (1, *table_SD)
    for layer in range(config.n_layers):
        for part in ("weight", "bias"):
            shapes[f"shared.transformer_blocks.{layer}.ffn_norm.{part}"] = (config.d_model,)
    return shapes


def router_shapes(config: ModelConfig) -> Shapes:
    """Their MoE layers without the experts."""
    shapes: Shapes = {}
    for layer in range(config.n_layers):
        shapes[gate_name(layer)] = shapes[noise_name(layer)] = (config.n_experts, config.d_model)
        for part in ("weight", "bias"):
            shapes[norm_name(layer, part)] = (config.d_model,)
    return shapes


def check_assembled(table: TensorTable, config: ModelConfig, *, bare: bool) -> None:
    """Raises CheckpointError naming the tensor that is not as the config says.

    `bare`: a safetensors file, whose writer had to drop one of the tied tensors and may have dropped
    what is derived or used in training only.
    """
    if config.n_layers * config.n_experts > len(table.names):
        raise CheckpointError(
            f"{table.where}: has {len(table.names)} tensors, "
            f"too few for n_layers {config.n_layers} x n_experts {config.n_experts}"
        )
    expected = shared_shapes(config, table) | router_shapes(config)
    for name, shape in family_of(config).expert_shapes(config).items():
        for layer in range(config.n_layers):
            expected |= {expert_name(layer, expert, name): shape for expert in range(config.n_experts)}
    check_table(table, expected, _optional(table, config) if bare else frozenset())
    check_derived(table, config)


def _optional(table: TensorTable, config: ModelConfig) -> frozenset[str]:
    tied = EMBEDDING if HEAD in table.names else HEAD
    return frozenset({tied, POSITIONS, *map(noise_name, range(config.n_layers))})


def check_derived(table: TensorTable, config: ModelConfig) -> None:
    """Raises CheckpointError if the head is not the embedding, or the positions are not this model's."""
    if {EMBEDDING, HEAD} <= table.names and not torch.equal(table.read(EMBEDDING), table.read(HEAD)):
        raise CheckpointError(f"{table.where}: tensor {HEAD!r} differs from {EMBEDDING!r}; they must be tied")
    if POSITIONS in table.names:
        positions_SD = table.read(POSITIONS).reshape(config.max_seq_len, config.d_model)
        ours_SD = sinusoidal_positions(config.max_seq_len, config.d_model).to(positions_SD.dtype)
        tolerance = max(_POSITIONS_TOLERANCE, torch.finfo(positions_SD.dtype).eps)
        if not torch.allclose(positions_SD.float(), ours_SD.float(), rtol=0, atol=tolerance):
            raise CheckpointError(f"{table.where}: tensor {POSITIONS!r} is not the sinusoidal position table")
