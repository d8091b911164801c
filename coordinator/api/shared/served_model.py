"""ServedModel: everything the fronts need to know about the model behind them. Knows no weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.api.requests.lanes import Lanes
from coordinator.api.shared.errors import ApiError, Reason, Resource
from coordinator.api.text.chat_template import ChatTemplate
from coordinator.config.model import GenerationConfig
from coordinator.engine.messages.request import ConstraintSource, ContextOverflow
from expertmesh.shown_text import quoted_ascii
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.text.tokenizer import Tokenizer

# Of each layer.
ExpertIds = tuple[tuple[int, ...], ...]


class ConstraintChecker(Protocol):
    """Says what is wrong with a constraint; `kinds` are field names of OutputConstraint."""

    @property
    def kinds(self) -> Sequence[str]: ...

    def check(self, source: ConstraintSource) -> None:
        """Raises ConstraintError. May be called from several threads."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One served model with its limits. `kv_capacity_tokens` is what one request can have at most.

    `unread_tokenizer` is the file of a tokenizer in a form that is not read, where there is no other.
    """

    name: str
    config: ModelConfig
    generation_defaults: GenerationDefaults
    tokenizer: Tokenizer | None
    architecture: str
    max_output_tokens: int
    kv_capacity_tokens: int
    aliases: tuple[str, ...] = ()
    default_overflow: ContextOverflow = ContextOverflow.STOP
    chat_template: ChatTemplate | None = None
    constraints: ConstraintChecker | None = None
    max_num_sequences: int = 8
    max_logprobs: int = 20
    allow_routed_experts: bool = False
    generation_config: GenerationConfig = GenerationConfig.MODEL
    lanes: Lanes = field(default_factory=Lanes, compare=False)
    current_experts: Callable[[], ExpertIds] | None = None
    unread_tokenizer: str = ""

    @property
    def experts(self) -> ExpertIds:
        """The expert ids of each layer, as they are now; without `current_experts`, the checkpoint's."""
        if self.current_experts is not None:
            return self.current_experts()
        return tuple(tuple(self.config.experts_of(layer)) for layer in range(self.config.n_layers))

    @property
    def sampling_defaults(self) -> GenerationDefaults:
        """What unset fields of sampling mean."""
        if self.generation_config is GenerationConfig.MODEL:
            return self.generation_defaults
        return self.generation_defaults.neutral()

    @property
    def tokenizer_waits(self) -> bool:
        """Whether to encode even a short text is to wait."""
        return self.tokenizer is not None and self.tokenizer.waits

    @property
    def max_context(self) -> int:
        return self.config.max_seq_len

    def check_name(self, name: str) -> None:
        """Raises MODEL_NOT_FOUND unless `name` is empty, ours or an alias."""
        if name and name != self.name and name not in self.aliases:
            raise ApiError.of(
                Reason.MODEL_NOT_FOUND,
                f"model: {quoted_ascii(name)} is not served here",
                resource=Resource("model", quoted_ascii(name)),
            )

    def require_tokenizer(self, field: str) -> Tokenizer:
        """The tokenizer; NO_TOKENIZER naming the field that asks for it when the checkpoint has none."""
        if self.tokenizer is None:
            raise ApiError.of(Reason.NO_TOKENIZER, no_tokenizer(self.unread_tokenizer), field=field)
        return self.tokenizer


def no_tokenizer(unread: str) -> str:
    """Why there are no texts, and what to do. `unread` as in ServedModel."""
    if not unread:
        return "this model's checkpoint has no tokenizer; use token ids"
    return f"this model has {unread} and no tokenizer.json; use token ids, or convert it to tokenizer.json"
