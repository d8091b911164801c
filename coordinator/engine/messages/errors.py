"""What goes wrong in an engine, as its callers see it. Needs nothing heavy.

What leaves an engine is one of these or one of moe_model.errors; failure.py says how they travel.
"""

from moe_model.errors import UserError, WorldError


class CapacityError(UserError):
    """A request can never fit the KV cache."""


class UnknownExpertError(UserError):
    """A request selects experts that the model does not have, or not any more."""


class ConstraintError(UserError):
    """A constraint is not one, is not supported, or cannot be followed with this model's tokens."""


class NoTokenLeftError(UserError):
    """What a request allows, taken together, leaves no token to draw."""

    def __init__(
        self, message: str = "allowed_token_ids, bad_words and the constraint leave no token to draw"
    ) -> None:
        super().__init__(message)


class DuplicateRequestError(UserError):
    """A request with this id is running."""


class RequestExpiredError(UserError):
    """A request has taken longer than any may."""


class SlowConsumerError(UserError):
    """More output waits to be read than one request may hold."""


class ExchangeError(UserError):
    """A change of experts is refused or has failed, and nothing has changed. `field` is what is wrong."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class EngineError(WorldError):
    """A step failed for a reason that was not foreseen; the log has it."""


class StepMemoryError(EngineError):
    """There was not enough memory for a step."""


class EngineClosedError(WorldError):
    """The engine has been closed."""


class EngineLostError(WorldError):
    """The engine's process is gone; it is started again."""


class EngineBusyError(WorldError):
    """The engine's process has not taken what was sent to it before."""


class NoCommandError(UserError):
    """This engine has no such command, as one without workers cannot be scaled."""


class IntegrityError(WorldError):
    """The engine's bookkeeping has lost a block or a sequence."""


class MessageError(WorldError):
    """Bytes that are no message of ours."""
