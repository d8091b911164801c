"""Names of tensors as published families have them, for all that they have in common.

A family says where its own differ. Ours are those of `decoder/shapes.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.decoder.config import DecoderConfig
from moe_model.families.hugging_face import ConfigKeys, Sources, TensorSource
from moe_model.families.rope import rope_parameters

_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_ATTENTION = {
    **{f"{ours}.{kind}": f"self_attn.{ours}_proj.{kind}" for ours in "qkv" for kind in ("weight", "bias")},
    **{f"out.{kind}": f"self_attn.o_proj.{kind}" for kind in ("weight", "bias")},
    "q_norm.weight": "self_attn.q_norm.weight",
    "k_norm.weight": "self_attn.k_norm.weight",
    "sinks": "self_attn.sinks",
}
LATENT_ATTENTION = {
    "q_norm.weight": "self_attn.q_a_layernorm.weight",
    "q_up.weight": "self_attn.q_b_proj.weight",
    "kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "kv_up.weight": "self_attn.kv_b_proj.weight",
    **{f"q_down.{kind}": f"self_attn.q_a_proj.{kind}" for kind in ("weight", "bias")},
    **{f"kv_down.{kind}": f"self_attn.kv_a_proj_with_mqa.{kind}" for kind in ("weight", "bias")},
}
_REST = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "router.weight": "mlp.gate.weight",
    "router.bias": "mlp.gate.bias",
    "router.correction": "mlp.gate.e_score_correction_bias",
    **{f"dense.{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{f"shared.{part}.weight": f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")},
}
_BLOCK = _ATTENTION | _REST
# Of the experts of families whose feed-forward network is called block_sparse_moe.
NUMBERED_EXPERT = {
    "gate.weight": "experts.{e}.w1.weight",
    "up.weight": "experts.{e}.w3.weight",
    "down.weight": "experts.{e}.w2.weight",
}
_SIZES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
}
# Those whose keys or defaults differ more.
_MORE = {
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "tie_embedding": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}


def read_sizes(keys: ConfigKeys, **defaults: int) -> dict[str, Any]:
    """Fields of a ModelConfig that all published configs have keys for. `defaults` are by those keys, as
    their authors' config class has them; without one for the key/value heads there are as many as heads.

    Raises ConfigError naming the key.
    """
    keys.expect("hidden_act", "silu")
    # Null stands for one for each query head, an absent key for what the published models have.
    n_kv_heads = 0 if keys.is_null("num_key_value_heads") else defaults.get("num_key_value_heads", 0)
    return {ours: keys.count(theirs, defaults[theirs]) for ours, theirs in _SIZES.items()} | {
        "n_kv_heads": keys.count("num_key_value_heads", n_kv_heads),
        "head_dim": keys.count("head_dim", 0),
        "top_k": keys.count("num_experts_per_tok", defaults["num_experts_per_tok"]),
        "tie_embedding": keys.flag("tie_word_embeddings", default=False),
    }


class PublishedFolder:
    """What most families' folders look like. A family's own class derives from it and reads the config.

    `block`: our name of a tensor of a layer -> theirs, or where it is, where they differ from the common
    ones. `expert`: our name of a tensor of an expert -> theirs, with `{e}` for the expert. `prefix`: of the
    experts. `keys`: our name of a field, of the config or of its `own` -> their key, beside the common ones,
    for writing.
    """

    block: ClassVar[Mapping[str, str | TensorSource]] = {}
    expert: ClassVar[Mapping[str, str]] = {
        f"{part}.weight": f"experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    prefix = "mlp"
    keys: ClassVar[Mapping[str, str]] = {}

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        """Raises ConfigError naming the key."""
        raise NotImplementedError

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """What `read_config` reads as `config`, as far as `keys` say it; a family adds the rest."""
        own = config.own
        assert isinstance(own, DecoderConfig)
        names = {**_SIZES, **_MORE, **self.keys}
        values = {theirs: getattr(own, ours, None) for ours, theirs in names.items()}
        values |= {theirs: getattr(config, ours) for ours, theirs in names.items() if hasattr(config, ours)}
        return values | {"rope_parameters": rope_parameters(own.rope_theta, own.rope_scaling)}

    def shared_sources(self, config: ModelConfig, names: Iterable[str]) -> Sources:
        return {name: (self._source(name),) for name in names}

    def expert_sources(self, config: ModelConfig, layer: int, expert: int) -> Sources:
        """One by one, or stacked, gate before up, as newer tools write them."""
        at = f"model.layers.{layer}.{self.prefix}"
        gate_up, down = (f"{at}.experts.{part}_proj" for part in ("gate_up", "down"))
        stacked = {
            "gate.weight": TensorSource(gate_up, expert, "first_half"),
            "up.weight": TensorSource(gate_up, expert, "second_half"),
            "down.weight": TensorSource(down, expert),
        }
        return {
            ours: (TensorSource(f"{at}.{theirs.format(e=expert)}"), stacked[ours])
            for ours, theirs in self.expert.items()
        }

    def _source(self, name: str) -> TensorSource:
        if name in _TOP:
            return TensorSource(_TOP[name])
        _, layer, ours = name.split(".", 2)
        found = self.block.get(ours) or _BLOCK[ours]
        source = TensorSource(found) if isinstance(found, str) else found
        theirs = f"model.layers.{layer}.{source.name}"
        return TensorSource(theirs, source.item, source.part, source.is_transposed)
