"""A MiniMax-M2 as its authors publish it: `config.json` of model_type minimax_m2, and its tensors' names."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.minimax_m2.config import MiniMaxConfig
from moe_model.families.published import NUMBERED_EXPERT, PublishedFolder

# The one kind of attention that M2 has, in a list that says it of each layer.
_FULL = 1


class MiniMaxFolder(PublishedFolder):
    """Reads the Hugging Face folder of a MiniMax-M2."""

    block: ClassVar = {
        "router.weight": "block_sparse_moe.gate.weight",
        "router.correction": "block_sparse_moe.e_score_correction_bias",
    }
    expert: ClassVar = NUMBERED_EXPERT
    prefix = "block_sparse_moe"
    keys: ClassVar = {"n_experts": "num_local_experts", "d_ff": "intermediate_size"}

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        keys.expect("hidden_act", "silu")
        d_model, n_heads = keys.count("hidden_size", 3072), keys.count("num_attention_heads", 48)
        n_layers = keys.count("num_hidden_layers", 62)
        max_seq_len = keys.count("max_position_embeddings", 196608)
        head_dim = keys.count("head_dim", max(d_model // n_heads, 1) if keys.is_null("head_dim") else 128)
        self._expect_what_is_built(keys, n_layers)
        # An older key for a part of each head; where both are there they have to agree.
        turning = keys.count("rotary_dim", head_dim)
        rope = keys.rope(5e6, max_seq_len, partial=turning / head_dim)
        rotary_dim = int(head_dim * rope.partial)
        if keys.has("rotary_dim") and rotary_dim != turning:
            raise ConfigError(f"rotary_dim: {turning}, but partial_rotary_factor makes it {rotary_dim}")
        return ModelConfig(
            family="minimax_m2",
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=keys.count("num_key_value_heads", 0 if keys.is_null("num_key_value_heads") else 8),
            head_dim=head_dim,
            n_layers=n_layers,
            d_ff=keys.count("intermediate_size", 1536),
            n_experts=keys.count("num_local_experts", 256),
            top_k=keys.count("num_experts_per_tok", 8),
            vocab_size=keys.count("vocab_size", 200064),
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            own=MiniMaxConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                rotary_dim=None if rotary_dim == head_dim else rotary_dim,
            ),
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own, found = config.own, super().write_config(config)
        assert isinstance(own, MiniMaxConfig)
        found["rope_parameters"]["partial_rotary_factor"] = (
            own.rotary_dim or config.head_dim
        ) / config.head_dim
        return found

    def _expect_what_is_built(self, keys: ConfigKeys, n_layers: int) -> None:
        """The published files have keys of the models before, each of which M2 has one value of."""
        types = keys.items("attn_type_list", int)
        if types is not None and types != (_FULL,) * n_layers:
            raise ConfigError(f"attn_type_list: is not {_FULL} for each of {n_layers} layers")
        for name, value in {
            "qk_norm_type": "per_layer",
            "scoring_func": "sigmoid",
            "shared_intermediate_size": 0,
            "use_qk_norm": True,
            "use_routing_bias": True,
        }.items():
            keys.expect(name, value)
        for kind in ("full_attention", "linear_attention", "mlp"):
            keys.expect(f"layernorm_{kind}_beta", 1, 1.0)
        keys.expect("sliding_window")
        # Predictions that serve none here, widths that no part has, and code that this family is in place of.
        keys.expect_code("configuration_minimax_m2", "modeling_minimax_m2")
        keys.ignore("mlp_intermediate_size", "shared_moe_mode")
        keys.ignore("mtp_transformer_layers", "num_mtp_modules", "use_mtp")
