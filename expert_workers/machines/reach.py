"""Which ports of a machine can be connected to, and which can be listened on. Light."""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

from moe_model.errors import ConfigError

# Seconds for one connection on its way through a network; a firewall that drops lets them pass.
CONNECT_SECONDS = 2.0
# Of Linux's netdevice(7).
_SIOCGIFADDR = 0x8915


def unreachable(host: str, ports: Iterable[int], source: str | None = None) -> dict[int, str]:
    """Why each of the ports that cannot be connected to is out of reach; all are tried at once."""
    wanted = list(ports)
    with ThreadPoolExecutor(max(1, len(wanted)), "reach") as pool:
        found = zip(wanted, pool.map(lambda port: _why(host, port, source), wanted), strict=True)
        return {port: why for port, why in found if why}


def _why(host: str, port: int, source: str | None) -> str:
    try:
        from_there = None if source is None else (source, 0)
        socket.create_connection((host, port), CONNECT_SECONDS, from_there).close()
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def taken(ports: Iterable[int]) -> dict[int, str]:
    """Why each of the ports that this machine cannot listen on is not free, on any of its addresses."""
    found: dict[int, str] = {}
    for port in ports:
        try:
            _listen(port).close()
        except OSError as error:
            found[port] = os.strerror(error.errno or 0)
    return found


@contextmanager
def answering(ports: Iterable[int]) -> Iterator[None]:
    """While it lasts, this machine accepts connections at the ports, and says nothing. Raises ConfigError
    for one that is taken."""
    with ExitStack() as stack:
        for port in ports:
            try:
                listener = stack.enter_context(_listen(port))
            except OSError as error:
                why = os.strerror(error.errno or 0)
                raise ConfigError(f"port {port}: cannot be listened on ({why})") from None
            listener.listen(8)
        # The kernel answers; nothing has to accept what ends again at once.
        yield


def _listen(port: int) -> socket.socket:
    """As Ray does, on all addresses of version 4. Raises OSError."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # What has just ended may still be in the kernel's memory.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
    except OSError:
        made.close()
        raise
    return made


def own_address() -> str:
    """This machine's address on its way to other networks; where it has no such way, that of its first device
    besides loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with suppress(OSError):
            # Any address that is no neighbour's.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        found = (_address_of(probe, name) for _, name in socket.if_nameindex() if name != "lo")
        return next(filter(None, found), "127.0.0.1")


def _address_of(probe: socket.socket, device: str) -> str:
    """Empty for one without an address of version 4."""
    with suppress(OSError):
        # A struct ifreq: the name in 16 bytes, then a sockaddr_in, whose address is its bytes 4 to 8.
        answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", device.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    return ""
