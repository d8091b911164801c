"""What the configs of DeepSeek's families have, and of those that took over parts of them.

Fields of our configs have the published keys' names where they mean the same.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from moe_model.checks import check_count, check_flag, check_number, check_object, check_width
from moe_model.config import LIMITS, ModelConfig
from moe_model.decoder.config import DecoderConfig
from moe_model.decoder.spec import LatentAttention
from moe_model.errors import ConfigError
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.rope import RopeKeys, mscale_of
from moe_model.layers.expert_groups import ExpertGroups
from moe_model.layers.router_rules import TopKOfSigmoid, TopKOfSoftmax
from moe_model.layers.specs import Pairing, RotarySpec

_MAX_WIDTH = 1 << 16


@dataclass(frozen=True, slots=True)
class ChoiceConfig:
    """How a row chooses its experts, beyond the rule: among those of the `topk_group` best of `n_group`
    groups; the weights are divided by their sum with `norm_topk_prob`, and multiplied by
    `routed_scaling_factor`."""

    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        check_count("n_group", self.n_group, LIMITS["n_experts"])
        check_count("topk_group", self.topk_group, LIMITS["n_experts"])
        check_flag("norm_topk_prob", self.norm_topk_prob)
        check_number("routed_scaling_factor", self.routed_scaling_factor, 1e-6, 1e6)

    def by_softmax(self, n_experts: int, top_k: int) -> TopKOfSoftmax:
        """A group is as good as its best expert. Raises ConfigError for groups that cannot be."""
        groups = ExpertGroups.of(n_experts, self.n_group, self.topk_group, top_k, num_counted=1)
        return TopKOfSoftmax(self.norm_topk_prob, self.routed_scaling_factor, groups)

    def by_sigmoid(self, n_experts: int, top_k: int) -> TopKOfSigmoid:
        """A group is as good as its two best experts. Raises ConfigError for groups that cannot be."""
        groups = ExpertGroups.of(n_experts, self.n_group, self.topk_group, top_k, num_counted=2)
        return TopKOfSigmoid(self.norm_topk_prob, self.routed_scaling_factor, groups)


# Of all experts, by what the rule says alone.
NO_CHOICE = ChoiceConfig()


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Sizes of latent attention, as `decoder.spec.LatentAttention` has them; `turning_width` numbers of a
    head turn. `yarn_scale` multiplies (plain + turning)^-1/2."""

    query_rank: int | None = None
    latent_rank: int = 512
    plain_width: int = 128
    turning_width: int = 64
    value_width: int = 128
    yarn_scale: float = 1.0
    has_biases: bool = False

    def __post_init__(self) -> None:
        for name in ("latent_rank", "plain_width", "turning_width", "value_width"):
            check_count(name, getattr(self, name), _MAX_WIDTH)
        if self.query_rank is not None:
            check_count("query_rank", self.query_rank, _MAX_WIDTH)
        check_number("yarn_scale", self.yarn_scale, 1e-6, 1e6)
        check_flag("has_biases", self.has_biases)

    @property
    def head_dim(self) -> int:
        return self.plain_width + self.turning_width


@dataclass(frozen=True, slots=True)
class DeepseekConfig(DecoderConfig):
    """A DeepSeek's. `dense_width` is of the networks of dense layers, `shared_width` of all shared experts of
    a layer together, 0 for none; `is_interleaved`: numbers that turn together are neighbours."""

    latent: LatentConfig = LatentConfig()
    choice: ChoiceConfig = NO_CHOICE
    dense_width: int = 0
    shared_width: int = 0
    is_interleaved: bool = True

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_object("latent", self.latent, LatentConfig)
        check_object("choice", self.choice, ChoiceConfig)
        check_width("dense_width", self.dense_width)
        check_width("shared_width", self.shared_width)
        check_flag("is_interleaved", self.is_interleaved)
        scaling = self.rope_scaling
        is_yarn = scaling is not None and scaling.kind == "yarn" and scaling.factor > 1
        if self.latent.yarn_scale != 1.0 and not is_yarn:
            raise ConfigError(
                f"latent: yarn_scale {self.latent.yarn_scale} goes with a yarn of a factor above 1"
            )

    def attention(self, head_dim: int, *, is_rounded_once: bool = False) -> LatentAttention:
        """`is_rounded_once` as `RotarySpec` has it. Raises ConfigError for a head_dim that is not that of the
        parts of a head."""
        latent = self.latent
        if head_dim != latent.head_dim:
            raise ConfigError(f"head_dim: {head_dim} is not plain_width + turning_width {latent.head_dim}")
        pairing: Pairing = "interleaved" if self.is_interleaved else "half_split"
        width, scaling = latent.turning_width, self.rope_scaling
        return LatentAttention(
            latent.yarn_scale / sqrt(head_dim),
            RotarySpec(width, self.rope_theta, pairing, scaling, is_rounded_once=is_rounded_once),
            latent.query_rank,
            latent.latent_rank,
            latent.plain_width,
            latent.value_width,
            has_biases=latent.has_biases,
        )


def read_latent(keys: ConfigKeys, n_heads: int, rope: RopeKeys) -> LatentConfig:
    """`head_dim` and `qk_head_dim`, which newer tools write, are no sizes of it: the rest says them."""
    keys.ignore("head_dim", "qk_head_dim")
    keys.expect("num_key_value_heads", n_heads)
    # Null stands for queries of one product, an absent key for the published models' own.
    is_direct = keys.is_null("q_lora_rank")
    query_rank = keys.count("q_lora_rank", 1536)
    return LatentConfig(
        None if is_direct else query_rank,
        keys.count("kv_lora_rank", 512),
        keys.count("qk_nope_head_dim", 128),
        keys.count("qk_rope_head_dim", 64),
        keys.count("v_head_dim", 128),
        rope.yarn_scale,
        keys.flag("attention_bias", default=False),
    )


def read_sigmoid_choice(
    keys: ConfigKeys, n_group: int, topk_group: int, routed_scaling_factor: float
) -> ChoiceConfig:
    """Of models that choose by corrected sigmoids, with their defaults. Null n_group: there are no groups."""
    if keys.is_null("n_group"):
        n_group = topk_group = 1
    return ChoiceConfig(
        keys.count("n_group", n_group),
        keys.count("topk_group", topk_group),
        # As Python reads it: absent it is true, null it is false.
        keys.flag("norm_topk_prob", default=not keys.is_null("norm_topk_prob")),
        keys.number("routed_scaling_factor", routed_scaling_factor),
    )


# Our names of fields -> the published keys, for writing.
KEYS = {"n_experts": "n_routed_experts", "dense_width": "intermediate_size"}


def dense_and_shared(config: ModelConfig, shared_width: int) -> dict[str, object]:
    """What is read as these dense layers and this width of all shared experts together."""
    return {
        "first_k_dense_replace": len(config.dense_layers),
        "n_shared_experts": shared_width // config.d_ff,
    }


def write_latent(found: dict[str, Any], own: DeepseekConfig) -> dict[str, Any]:
    """The common keys with those of latent attention. `head_dim` would be taken for the part that turns."""
    latent, rope = own.latent, dict(found["rope_parameters"])
    if latent.yarn_scale != 1.0:
        rope["mscale_all_dim"] = mscale_of(rope["factor"], latent.yarn_scale)
    return {name: value for name, value in found.items() if name != "head_dim"} | {
        "rope_parameters": rope,
        "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.latent_rank,
        "qk_nope_head_dim": latent.plain_width,
        "qk_rope_head_dim": latent.turning_width,
        "v_head_dim": latent.value_width,
        "attention_bias": latent.has_biases,
    }
