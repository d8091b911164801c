"""ServedModel: everything the fronts need to know about the model behind them. Knows no weights."""

from dataclasses import dataclass

from coordinator.api.errors import ApiError, Reason, Resource, echo
from coordinator.engine.request import ContextOverflow
from moe_model.checkpoint import GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One served model with its limits. `kv_capacity_tokens` is what one request can have at most."""

    name: str
    config: ModelConfig
    generation: GenerationDefaults
    tokenizer: Tokenizer | None
    architecture: str
    max_output_tokens: int
    kv_capacity_tokens: int
    aliases: tuple[str, ...] = ()
    default_overflow: ContextOverflow = ContextOverflow.STOP

    @property
    def max_context(self) -> int:
        return self.config.max_seq_len

    def check_name(self, name: str) -> None:
        """Raises MODEL_NOT_FOUND unless `name` is empty, ours or an alias."""
        if name and name != self.name and name not in self.aliases:
            raise ApiError.of(
                Reason.MODEL_NOT_FOUND,
                f"model: {echo(name)} is not served here",
                resource=Resource("model", echo(name)),
            )

    def require_tokenizer(self, field: str) -> Tokenizer:
        """The tokenizer; NO_TOKENIZER naming the field that asks for it when the checkpoint has none."""
        if self.tokenizer is None:
            raise ApiError.of(
                Reason.NO_TOKENIZER, "this model's checkpoint has no tokenizer; use token ids", field=field
            )
        return self.tokenizer
