"""Errors as data: on the other side of the seam they become the same exceptions again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from coordinator.engine.messages import errors as engine_errors
from moe_model import errors as model_errors
from moe_model.errors import ExpertMeshError

# What an exception carries besides its text.
Detail = str | tuple[int, ...]


def _kinds() -> dict[str, type[ExpertMeshError]]:
    found = [each for module in (model_errors, engine_errors) for each in vars(module).values()]
    return {
        each.__name__: each for each in found if isinstance(each, type) and issubclass(each, ExpertMeshError)
    }


# By name: every exception that can travel.
KINDS: Mapping[str, type[ExpertMeshError]] = _kinds()
# The attributes of exceptions that travel; an exception is made without them first.
_DETAILS = ("ranks", "field")


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception: its class by name, its text and what else it carries."""

    kind: str
    text: str
    details: dict[str, Detail] = field(default_factory=dict)

    @classmethod
    def of(cls, error: ExpertMeshError) -> Self:
        """A class that does not travel itself becomes the nearest of its bases that does."""
        kind = next(each.__name__ for each in type(error).__mro__ if KINDS.get(each.__name__) is each)
        details = {name: getattr(error, name, None) for name in _DETAILS}
        return cls(kind, str(error), {name: value for name, value in details.items() if value})

    def error(self) -> ExpertMeshError:
        """The exception; a kind that only a newer engine knows is what all of them are. Details that the kind
        does not have are left out."""
        error = KINDS.get(self.kind, ExpertMeshError)(self.text)
        for name, value in self.details.items():
            if name in _DETAILS and hasattr(error, name):
                setattr(error, name, value)
        return error
