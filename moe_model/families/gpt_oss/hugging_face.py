"""A gpt-oss as its authors publish it: `config.json` of model_type gpt_oss, and where its tensors are."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.families.gpt_oss.config import FULL, SLIDING, GptOssConfig
from moe_model.families.hugging_face import ConfigKeys, Sources, TensorSource
from moe_model.families.published import PublishedFolder

# Of a config that says nothing of positions.
_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOssFolder(PublishedFolder):
    """Reads the Hugging Face folder of a gpt-oss."""

    block: ClassVar = {"router.weight": "mlp.router.weight", "router.bias": "mlp.router.bias"}
    keys: ClassVar = {
        "n_experts": "num_local_experts",
        "d_ff": "intermediate_size",
        **{
            name: name
            for name in ("sliding_window", "layer_types", "attention_bias", "swiglu_limit", "swiglu_alpha")
        },
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        keys.expect("hidden_act", "silu")
        max_seq_len = keys.count("max_position_embeddings", 131072)
        rope = keys.rope(150000.0, max_seq_len, absent=_ROPE)
        top_k = keys.count("num_experts_per_tok", 4)
        # The authors' own names of two that are there under the common ones.
        keys.expect("experts_per_token", top_k)
        keys.ignore("initial_context_length")
        n_layers = keys.count("num_hidden_layers", 36)
        layer_types = keys.items("layer_types", str)
        if layer_types is None:
            layer_types = tuple((SLIDING, FULL)[layer % 2] for layer in range(n_layers))
        return ModelConfig(
            family="gpt_oss",
            d_model=keys.count("hidden_size", 2880),
            n_heads=keys.count("num_attention_heads", 64),
            n_kv_heads=keys.count("num_key_value_heads", 0 if keys.is_null("num_key_value_heads") else 8),
            head_dim=keys.count("head_dim", 0 if keys.is_null("head_dim") else 64),
            n_layers=n_layers,
            d_ff=keys.count("intermediate_size", 2880),
            n_experts=keys.count("num_local_experts", 128),
            top_k=top_k,
            vocab_size=keys.count("vocab_size", 201088),
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=False),
            own=GptOssConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-5),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                sliding_window=self._window(keys),
                layer_types=layer_types,
                attention_bias=keys.flag("attention_bias", default=True),
                swiglu_limit=keys.number("swiglu_limit", 7.0),
                swiglu_alpha=keys.number("swiglu_alpha", 1.702),
            ),
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        found = super().write_config(config)
        return found | {"layer_types": list(found["layer_types"])}

    def expert_sources(self, config: ModelConfig, layer: int, expert: int) -> Sources:
        """All experts in one tensor, inputs x outputs, of which gate and up have every other one. Where they
        are in 4 bits their rows are outputs, which is the reader's to know."""
        at = f"model.layers.{layer}.mlp.experts"
        gate_up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
        return {
            "gate.weight": (TensorSource(gate_up, expert, "even", is_transposed=True),),
            "gate.bias": (TensorSource(f"{gate_up}_bias", expert, "even"),),
            "up.weight": (TensorSource(gate_up, expert, "odd", is_transposed=True),),
            "up.bias": (TensorSource(f"{gate_up}_bias", expert, "odd"),),
            "down.weight": (TensorSource(down, expert, is_transposed=True),),
            "down.bias": (TensorSource(f"{down}_bias", expert),),
        }

    def _window(self, keys: ConfigKeys) -> int | None:
        """Null and 0 stand for none, an absent key for the published models' own."""
        return keys.count("sliding_window", 0 if keys.is_null("sliding_window") else 128, least=0) or None
