"""The trunk of the exception tree of the whole product; the server's branches are in moe_model/errors.py.

    ExpertMeshError
    ├── UserError              what a caller can cause and mend
    │   └── ConfigError          an option, an address, or a file that an option names
    └── ClientError            a call failed (expertmesh/messages.py)

Messages are one line and name the thing. The command line prints them as they are.
"""


class ExpertMeshError(Exception):
    """Any error this product raises on purpose."""


class UserError(ExpertMeshError):
    """The caller can mend it."""


class ConfigError(UserError):
    """A model configuration, an option or a file that it names is not usable."""
