"""What GLM-4.5 has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count, check_flag, check_object, check_width
from moe_model.decoder.config import DecoderConfig
from moe_model.families.deepseek import NO_CHOICE, ChoiceConfig
from moe_model.layers.specs import MAX_ROTARY_DIM


@dataclass(frozen=True, slots=True)
class Glm4MoeConfig(DecoderConfig):
    """The first `turning_width` numbers of a head turn. `dense_width` is of the networks of dense layers,
    `shared_width` of all shared experts of a layer together, 0 for none."""

    turning_width: int = 64
    has_qkv_biases: bool = False
    has_head_norms: bool = False
    choice: ChoiceConfig = NO_CHOICE
    dense_width: int = 0
    shared_width: int = 0

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_count("turning_width", self.turning_width, MAX_ROTARY_DIM)
        check_flag("has_qkv_biases", self.has_qkv_biases)
        check_flag("has_head_norms", self.has_head_norms)
        check_object("choice", self.choice, ChoiceConfig)
        check_width("dense_width", self.dense_width)
        check_width("shared_width", self.shared_width)
