"""What Ray takes from the environment: its token and its TLS. Looked at here before Ray does.

Ray reads these from the environment and from nowhere else, so this file does too, as the only one of its
package. It does not ask which users may read the token's file, and aborts the process without
a usable one.
"""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import _raylet

from expert_workers.tls import TlsPaths
from moe_model.errors import ConfigError
from moe_model.files.private_files import check_private, read_bounded, unreadable

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - a variable's name
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
USE_TLS = "RAY_USE_TLS"
_TLS_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_MAX_TOKEN_CHARS = 4096
_RAY: Any = _raylet

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayAccess:
    """What this process shows to a cluster. `source` is where the token came from; all None: nothing."""

    token: str | None = field(default=None, repr=False)
    source: str | None = None
    tls: TlsPaths | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "RayAccess":
        """By Ray's own rules. Raises ConfigError for files that are missing, not private or not usable."""
        tls = read_tls(environment)
        if environment.get(AUTH_MODE, "").lower() != "token":
            return cls(tls=tls)
        if environment.get(TOKEN):
            return cls(_checked(environment[TOKEN], TOKEN), TOKEN, tls)
        path = Path(environment.get(TOKEN_PATH) or default_token_path())
        _require(path)
        text = read_bounded(path, "Ray token").decode(errors="replace")
        return cls(_checked(text, str(path)), str(path), tls)


def default_token_path() -> Path:
    """Raises ConfigError for a user without a home, as there are in containers."""
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        raise ConfigError(
            f"Ray token: there is no home folder; say in {TOKEN_PATH} where the token is"
        ) from None


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _require(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise ConfigError(
            f"Ray token {path}: there is none, and {AUTH_MODE}=token is set; copy the cluster's there "
            f"with mode 600, or say in {TOKEN_PATH} where it is"
        ) from None
    except OSError as error:
        raise unreadable(path, "Ray token", error) from None
    check_private(path, "Ray token")


def _checked(text: str, source: str) -> str:
    """The first line, as Ray takes it."""
    token = text.strip().partition("\n")[0].strip()
    if not token:
        raise ConfigError(f"Ray token {source}: is empty")
    if len(token) > _MAX_TOKEN_CHARS or not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"Ray token {source}: is not one line of at most {_MAX_TOKEN_CHARS} visible characters"
        )
    return token


def read_tls(environment: Mapping[str, str] = os.environ) -> TlsPaths | None:
    """Raises ConfigError where only a part is there."""
    if environment.get(USE_TLS, "0").lower() not in ("1", "true"):
        return None
    for name in _TLS_FILES:
        if not environment.get(name):
            raise ConfigError(f"{USE_TLS} is set and {name} is not: it needs {', '.join(_TLS_FILES)}")
    paths = TlsPaths(*(environment[name] for name in _TLS_FILES))
    check_private(Path(paths.key), "Ray TLS key")
    return paths


def warn_of_open_token() -> None:
    """Ray makes its token's file readable for all; a cluster of our own does not use it, others will."""
    if not _has_home():
        return
    try:
        path = default_token_path()
        if path.exists():
            check_private(path, "Ray token")
    except (OSError, ConfigError) as error:
        _log.warning("%s", error)


class OwnToken:
    """A new token for one cluster of our own, in a file that only this user can read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "token"
        with open(self.path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_hex(32))

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs to join the cluster."""
        return {AUTH_MODE: "token", TOKEN_PATH: str(self.path)}


@contextmanager
def changed_environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """For Ray and the processes it starts meanwhile; None takes a variable away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        read_again()
        yield
    finally:
        _set(before)


def read_again() -> None:
    """Ray keeps what it has read; a process that was in another cluster before would go on with that."""
    _RAY.Config.initialize("")
    _RAY.AuthenticationTokenLoader.instance().reset_cache()


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
