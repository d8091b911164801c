"""ClusterFolder: what a machine of a cluster keeps between two starts, closed to others. Light.

A file appears whole or not at all, so that a process that is killed leaves nothing half written. What is in
use (`ca.pem`, `node.pem`, `node.key`, `ray.token`) has the same names on every machine: a worker's process
finds it by EXPERTMESH_CLUSTER.
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expert_workers.machines.ports import NodePorts, PortRange
from expert_workers.tls import FOLDER_VARIABLE
from moe_model.errors import ConfigError
from moe_model.files import strict_json
from moe_model.files.private_files import check_private, read_bounded, unreadable

DATA_PORTS_VARIABLE = "EXPERTMESH_DATA_PORTS"
CA, CERT, KEY, RAY_TOKEN, JOIN_TOKEN = "ca.pem", "node.pem", "node.key", "ray.token", "join.token"
# The CA that a head has made; `ca.pem` may be another's.
OWN_CA, OWN_CA_KEY = "own-ca.pem", "own-ca.key"
_MEMBERSHIP, _LOCK, _LEAVING = "cluster.json", "lock", "leaving"
_WHAT = "cluster folder"


@dataclass(frozen=True, slots=True)
class Membership:
    """Of one machine: where its cluster's head is (HOST:PORT), its own address, its ports, and whether Ray
    and rows are encrypted."""

    head: str
    address: str
    is_head: bool
    has_tls: bool
    ports: NodePorts


class ClusterFolder:
    """Made with `create` by what keeps it, and with `find` by who uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "ClusterFolder":
        """Raises ConfigError for one that cannot be made, or that others can look into."""
        path = _absolute(path)
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unreadable(path, _WHAT, error) from None
        return cls.find(path)

    @classmethod
    def find(cls, path: Path) -> "ClusterFolder":
        path = _absolute(path)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise ConfigError(
                f"{_WHAT} {path}: there is none; `expertmesh head` or `expertmesh join` makes one"
            ) from None
        except OSError as error:
            raise unreadable(path, _WHAT, error) from None
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(f"{_WHAT} {path}: is not a folder")
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(f"{_WHAT} {path}: others can look into it; chown it to this user and chmod 700")
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one process at a time; the kernel lets go of it when that ends. Raises ConfigError."""
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(lock, 20, 0).decode(errors="replace").strip()
                raise ConfigError(
                    f"{_WHAT} {self.path}: process {pid} uses it, another head or join; stop that one first, "
                    "or say another --folder"
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    def is_held(self) -> bool:
        """Whether a head or a joiner runs with it."""
        try:
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Its machine leaves, and stays away when the block is over; unless that raises."""
        self.write(_LEAVING, b"")
        try:
            yield
        except BaseException:
            self.stays()
            raise

    @property
    def is_leaving(self) -> bool:
        return self.has(_LEAVING)

    def stays(self) -> None:
        """Takes back that its machine leaves."""
        self.file(_LEAVING).unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return self.file(name).exists()

    def read(self, name: str) -> bytes:
        """Raises ConfigError for a file that is not there, or that others can read."""
        check_private(self.file(name), _WHAT)
        return read_bounded(self.file(name), _WHAT)

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all, for this user alone."""
        new = self.file(f".{name}.new")
        with suppress(FileNotFoundError):
            new.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.file(name))
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remember(self, membership: Membership) -> None:
        self.write(_MEMBERSHIP, json.dumps(asdict(membership), indent=1).encode())

    def membership(self) -> Membership:
        """Raises ConfigError where none is told."""
        try:
            return _membership(strict_json.loads(self.read(_MEMBERSHIP)))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{_WHAT} {self.file(_MEMBERSHIP)}: cannot be read; start head or join again"
            ) from None

    def environment(self, membership: Membership) -> dict[str, str | None]:
        """What every process of this machine's Ray, and every driver, has in its environment: paths and no
        secret. None: a variable that it must not have."""
        files = dict.fromkeys(("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"))
        if membership.has_tls:
            files = dict(zip(files, map(str, map(self.file, (CERT, KEY, CA))), strict=True))
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.file(RAY_TOKEN)),
            "RAY_AUTH_TOKEN": None,
            "RAY_USE_TLS": "1" if membership.has_tls else None,
            **files,
            FOLDER_VARIABLE: str(self.path),
            DATA_PORTS_VARIABLE: str(membership.ports.data),
        }


def _absolute(path: Path) -> Path:
    """Raises ConfigError for a user without a home, as there are in containers."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{_WHAT} {path}: there is no home folder; say another one") from None


def _membership(value: Any) -> Membership:
    """Raises KeyError, TypeError, ValueError."""
    ports = value["ports"]
    made = Membership(
        str(value["head"]),
        str(value["address"]),
        value["is_head"] is True,
        value["has_tls"] is True,
        NodePorts(int(ports["first"]), _range(ports["workers"]), _range(ports["data"])),
    )
    host, _, port = made.head.rpartition(":")
    if not host or not 0 < int(port) < 65536:
        raise ValueError(made.head)
    return made


def _range(value: Any) -> PortRange:
    return PortRange(int(value["first"]), int(value["last"]))
