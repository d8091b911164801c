"""What fronts must know of a model before they can serve it; it is known before the weights are read."""

from dataclasses import dataclass, field

from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.text.tokenizer_settings import TokenizerSettings


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as its checkpoint describes it, without weights: fronts open no checkpoint.

    `name` is the checkpoint's. `config` has no more positions than a sequence may have here, and leaves out
    what its family alone has. `kv_capacity_tokens` is what one sequence could have with plenty of memory.
    `tokenizer` is a tokenizer.json, None where there is none.
    """

    name: str
    architecture: str
    config: ModelConfig
    generation: GenerationDefaults
    kv_capacity_tokens: int
    tokenizer: bytes | None = field(default=None, repr=False)
    settings: TokenizerSettings = field(default_factory=TokenizerSettings)
