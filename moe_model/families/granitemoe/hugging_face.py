"""A mixture of experts of Granite's as its authors publish it: `config.json` of model_type granitemoe or
granitemoeshared, and stacked tensors: all experts in one, the gate's rows before those of up."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.families.granitemoe.config import MULTIPLIERS, GraniteMoeConfig
from moe_model.families.hugging_face import ConfigKeys, Sources, TensorSource
from moe_model.families.published import PublishedFolder, read_sizes

_WITH_SHARED = "granitemoeshared"


class GraniteMoeFolder(PublishedFolder):
    """Reads the Hugging Face folder of a mixture of experts of Granite's."""

    keys: ClassVar = {
        "n_experts": "num_local_experts",
        "d_ff": "intermediate_size",
        **{name: name for name in ("attention_bias", *MULTIPLIERS)},
    }
    block: ClassVar = {
        "router.weight": "block_sparse_moe.router.layer.weight",
        "shared.gate.weight": TensorSource("shared_mlp.input_linear.weight", part="first_half"),
        "shared.up.weight": TensorSource("shared_mlp.input_linear.weight", part="second_half"),
        "shared.down.weight": "shared_mlp.output_linear.weight",
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        sizes = read_sizes(
            keys,
            hidden_size=4096,
            num_attention_heads=32,
            num_hidden_layers=32,
            num_experts_per_tok=2,
            vocab_size=32000,
            max_position_embeddings=2048,
        )
        rope = keys.rope(1e4, sizes["max_seq_len"])
        return ModelConfig(
            family="granitemoe",
            d_ff=keys.count("intermediate_size", 11008),
            n_experts=keys.count("num_local_experts", 8),
            own=GraniteMoeConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                attention_multiplier=keys.number("attention_multiplier", 1.0),
                embedding_multiplier=keys.number("embedding_multiplier", 1.0),
                residual_multiplier=keys.number("residual_multiplier", 1.0),
                logits_scaling=keys.number("logits_scaling", 1.0),
                attention_bias=keys.flag("attention_bias", default=False),
                shared_width=_read_shared_width(keys),
            ),
            **sizes,
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own, found = config.own, super().write_config(config)
        assert isinstance(own, GraniteMoeConfig)
        if own.shared_width is None:
            return found
        return {
            **found,
            "architectures": ["GraniteMoeSharedForCausalLM"],
            "model_type": _WITH_SHARED,
            "shared_intermediate_size": own.shared_width,
        }

    def expert_sources(self, config: ModelConfig, layer: int, expert: int) -> Sources:
        gate_up, down = (
            f"model.layers.{layer}.block_sparse_moe.{part}_linear.weight" for part in ("input", "output")
        )
        return {
            "gate.weight": (TensorSource(gate_up, expert, "first_half"),),
            "up.weight": (TensorSource(gate_up, expert, "second_half"),),
            "down.weight": (TensorSource(down, expert),),
        }


def _read_shared_width(keys: ConfigKeys) -> int | None:
    """Of the type that has a shared expert; 0: it has none either."""
    if keys.model_type != _WITH_SHARED:
        keys.expect("shared_intermediate_size", 0)
        return None
    return keys.count("shared_intermediate_size", 0, least=0) or None
