"""The address that a client is given: what it must look like, and whether it leads to this machine."""

import ipaddress
import re

from expertmesh.errors import ConfigError

_HOST_PORT = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})"
)
_URL = re.compile(r"(?P<scheme>https?|grpcs?)://(?P<rest>.*)", re.IGNORECASE)
_SCHEME = re.compile(r"(?:dns|ipv4|ipv6):")
_BARE_V6 = re.compile(r"\[?[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]?")
# Names of grpc's own, such as dns:///host:port or unix:/path; what follows is for grpc to judge.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


def check_address(address: str) -> str:
    """The address as it is. Raises ConfigError, saying what is wrong with it, where it is no HOST:PORT."""
    if address.startswith(_GRPC_SCHEMES):
        return address
    url = _URL.fullmatch(address)
    if url is not None:
        raise ConfigError(f"address {address[:80]!r}: leave out {url['scheme']}://, it is HOST:PORT")
    match = _HOST_PORT.fullmatch(address)
    if match is not None and 1 <= int(match["port"]) <= 65535:
        return address
    raise ConfigError(f"address {address[:80]!r}: {_fault(address, match)}")


def host_port(address: str) -> tuple[str, int] | None:
    """None for an address that only grpc can read."""
    match = None if address.startswith(_GRPC_SCHEMES) else _HOST_PORT.fullmatch(address)
    return None if match is None else (match["v6"] or match["host"], int(match["port"]))


def is_local(address: str) -> bool:
    """Whether it can only be this machine: no proxy leads there."""
    if address.startswith("unix"):
        return True
    found = host_port(_SCHEME.sub("", address.rpartition("/")[2]))
    if found is None:
        return False
    host = found[0].partition("%")[0].lower()
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host.removesuffix(".") == "localhost" or host.removesuffix(".").endswith(".localhost")
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    return bool(mapped.is_loopback or mapped.is_unspecified)


def proxy_options(address: str) -> tuple[tuple[str, int], ...]:
    """Of a gRPC channel to it: no proxy leads to this machine, whatever http_proxy says."""
    return (("grpc.enable_http_proxy", 0),) if is_local(address) else ()


def _fault(address: str, match: re.Match[str] | None) -> str:
    if match is not None:
        return "its port is not in [1, 65535]"
    if _BARE_V6.fullmatch(address):
        return "an IPv6 address needs brackets and a port, as in [::1]:50051"
    if address and not set(address) & set(" :/[]"):
        return f"it has no port; as in {address}:50051"
    return "expected HOST:PORT or [IPV6]:PORT"
