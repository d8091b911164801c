"""What goes wrong with a constraint."""

from moe_model.errors import UserError


class ConstraintError(UserError):
    """A schema, expression or grammar that is none, or that is too much. The message is one line."""
