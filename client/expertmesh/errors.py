"""The trunk of the exception tree of the whole product; the server's branches are in moe_model/errors.py.

    ExpertMeshError
    ├── UserError              what a caller can cause and mend
    │   └── ConfigError          an option, an address, or a file that an option names
    └── ClientError            a call to a server failed

Messages are one line and name the thing. The command line prints them as they are.
"""


class ExpertMeshError(Exception):
    """Any error this product raises on purpose."""


class UserError(ExpertMeshError):
    """The caller can mend it."""


class ConfigError(UserError):
    """A model configuration, an option or a file that it names is not usable."""


class ClientError(ExpertMeshError):
    """A call failed. `code` is the gRPC status by name; `reason` and `field` are empty when unknown.

    `retry_after`: seconds after which the server would see the call again; below 0 never, None: not said.
    """

    def __init__(
        self,
        code: str,
        message: str,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after
