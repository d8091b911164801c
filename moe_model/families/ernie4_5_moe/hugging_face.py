"""An ERNIE 4.5 as its authors publish it: `config.json` of model_type ernie4_5_moe, and where its tensors
are."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.families.ernie4_5_moe.config import ErnieConfig
from moe_model.families.hugging_face import ConfigKeys, TensorSource
from moe_model.families.published import PublishedFolder


class ErnieFolder(PublishedFolder):
    """Reads the Hugging Face folder of an ERNIE 4.5 for texts."""

    block: ClassVar = {
        "router.correction": TensorSource("mlp.moe_statics.e_score_correction_bias", item=0),
    }

    keys: ClassVar = {
        "n_experts": "moe_num_experts",
        "top_k": "moe_k",
        "dense_width": "intermediate_size",
        "norm_min": "moe_norm_min",
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        keys.expect("hidden_act", "silu")
        keys.expect("use_bias", False)
        self._pass_over(keys)
        max_seq_len = keys.count("max_position_embeddings", 131072)
        rope = keys.rope(5e5, max_seq_len)
        n_layers = keys.count("num_hidden_layers", 28)
        width = keys.count("moe_intermediate_size", 1536)
        return ModelConfig(
            family="ernie4_5_moe",
            d_model=keys.count("hidden_size", 2560),
            n_heads=keys.count("num_attention_heads", 20),
            n_kv_heads=keys.count("num_key_value_heads", 0 if keys.is_null("num_key_value_heads") else 4),
            head_dim=keys.count("head_dim", 0),
            n_layers=n_layers,
            d_ff=width,
            n_experts=keys.count("moe_num_experts", 64),
            top_k=keys.count("moe_k", 6),
            vocab_size=keys.count("vocab_size", 103424),
            max_seq_len=max_seq_len,
            tie_embedding=keys.flag("tie_word_embeddings", default=True),
            dense_layers=self._dense_layers(keys, n_layers),
            own=ErnieConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-5),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                dense_width=keys.count("intermediate_size", 12288),
                shared_width=width * keys.count("moe_num_shared_experts", 2, least=0),
                norm_min=keys.number("moe_norm_min", 1e-12),
            ),
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own, layers = config.own, config.moe_layers
        assert isinstance(own, ErnieConfig)
        return {
            **super().write_config(config),
            "moe_num_shared_experts": own.shared_width // config.d_ff,
            "moe_layer_start_index": layers[0],
            "moe_layer_end_index": layers[-1],
            "moe_layer_interval": layers[1] - layers[0] if len(layers) > 1 else 1,
        }

    def _dense_layers(self, keys: ConfigKeys, n_layers: int) -> tuple[int, ...]:
        """Those before the first and after the last that may have experts, -1 standing for the last of all,
        and of those between, all but each `interval`-th."""
        first = keys.count("moe_layer_start_index", 1, least=0)
        last = keys.count("moe_layer_end_index", -1, least=-1)
        interval = keys.count("moe_layer_interval", 1)
        last = n_layers - 1 if last < 0 else last
        has_experts = [(layer + 1) % interval == 0 and first <= layer <= last for layer in range(n_layers)]
        return tuple(layer for layer, has in enumerate(has_experts) if not has)

    def _pass_over(self, keys: ConfigKeys) -> None:
        """What the published files say beside all this: one way to route, how training bounded its batches,
        predictions that serve none here, and code that this family is in place of."""
        keys.expect("moe_gate", "topk", "top2_fused")
        keys.expect("moe_gate_act", "softmax")
        keys.expect("moe_use_aux_free", True)
        keys.expect_code("configuration_ernie4_5_moe", "modeling_ernie4_5_moe")
        keys.ignore("moe_capacity", "num_nextn_predict_layers")
        keys.ignore("hidden_dropout_prob", "attention_probs_dropout_prob")
