"""The model: mathematics, checkpoints, tokenizer. Knows nothing of Ray, gRPC or requests."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_model.assembled import AssembledModel
    from moe_model.config import ModelConfig

__all__ = ["AssembledModel", "ModelConfig"]

_HOMES = {"AssembledModel": "moe_model.assembled", "ModelConfig": "moe_model.config"}


def __getattr__(name: str) -> object:
    """Loads on first use: a client that needs only the errors does not wait for torch (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
