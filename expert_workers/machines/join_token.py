"""JoinToken: the one line that a joiner needs of a head: a secret, and which CA to trust. Light."""

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from moe_model.errors import ConfigError
from moe_model.files.private_files import check_private, read_bounded

_LINE = re.compile(r"emj1(c?)-([0-9a-f]{64})-([0-9a-f]{64})")
_WHAT = "join token"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`ca` is the SHA-256 of the CA's certificate, in hexadecimal digits. `brings`: machines of this cluster
    bring certificates of their own."""

    secret: str = field(repr=False)
    ca: str
    brings: bool = False

    @classmethod
    def new(cls, ca: str, brings: bool = False) -> Self:
        return cls(secrets.token_hex(32), ca, brings)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError for a file that is missing, open to others, or none of these."""
        check_private(path, _WHAT)
        found = _LINE.fullmatch(read_bounded(path, _WHAT).decode(errors="replace").strip())
        if found is None:
            raise ConfigError(
                f"{_WHAT} {path}: is none; copy join.token of the head's folder whole, one line that "
                "begins with emj1"
            )
        return cls(found[2], found[3], bool(found[1]))

    def line(self) -> str:
        return f"emj1{'c' if self.brings else ''}-{self.secret}-{self.ca}\n"
