"""What becomes of a question that is put to a process with limits."""

from moe_model.errors import UserError, WorldError


class OutOfTimeError(UserError):
    """The question took more time than it may; its process was ended."""


class CrashedError(UserError):
    """The question ended its process: too deep, too large, or more memory than there is."""


class NoProcessError(WorldError):
    """The process cannot be started."""


class BusyError(WorldError):
    """All processes answer others' questions, and none came free in time."""
