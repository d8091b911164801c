"""What becomes of a question that is put to a process with limits."""

from moe_model.errors import UserError


class OutOfTimeError(UserError):
    """The question took more time than it may; its process was ended."""


class CrashedError(UserError):
    """The question ended its process: too deep, too large, or more memory than there is."""
