"""The socket on which an engine listens for its fronts: in a folder that no other user can enter."""

import os
import socket
import stat
import struct
from pathlib import Path

from moe_model.errors import ConfigError

# What fits into a socket's address on Linux.
MAX_PATH_BYTES = 107
_BACKLOG = 128
# Process, user and group.
_CREDENTIALS = struct.Struct("iII")


def listen_at(path: Path) -> socket.socket:
    """Makes the folder if it is not there; takes the place of a dead engine's socket.

    Raises ConfigError for a folder that others can enter, a path that is too long, and a living engine's.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(f"{path}: is longer than the {MAX_PATH_BYTES} bytes that a socket's path may have")
    try:
        _check_folder(path.parent)
        _remove_dead(path)
        return _listening(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be listened at: {error.strerror or error}") from None


def user_of(sock: socket.socket) -> int:
    """The user whose process is at the other end."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _check_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{folder}: others can enter it; the engine's socket needs a folder of mode 0700 of ours"
        )


def _remove_dead(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{path}: is there and is no socket; an engine listens at no other file")
    with socket.socket(socket.AF_UNIX) as probe:
        # An engine that lives takes it at once, or its queue is full.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"{path}: another engine listens there; end it first")


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
