"""What ERNIE 4.5 has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count, check_number
from moe_model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class ErnieConfig(DecoderConfig):
    """`dense_width` is of the layers without experts, `shared_width` of the shared expert, 0: there is none.
    `norm_min` is the least that the weights of a row are divided by."""

    rope_theta: float = 5e5
    dense_width: int = 12288
    shared_width: int = 0
    norm_min: float = 1e-12

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_count("dense_width", self.dense_width, 1 << 20)
        if self.shared_width:
            check_count("shared_width", self.shared_width, 1 << 20)
        check_number("norm_min", self.norm_min, 1e-30, 1.0)
