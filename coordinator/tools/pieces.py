"""What a model's output consists of, for a reader that gets it piece by piece."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a tool, the next one of the output."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON text of the arguments of the call that was begun last."""

    text: str


Piece = Said | Thought | CallBegun | Arguments
