"""Requests as a proxy passes them on: who sent them, and targets that name a server."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

_Address = IPv4Address | IPv6Address
_ABSOLUTE = ("http://", "https://")


class Proxied:
    """An app whose requests have their sender's address and a path, whatever proxies have made of them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        changed = {**scope, "client": _client(scope)}
        if scope["path"].lower().startswith(_ABSOLUTE):
            changed["path"] = unquote(urlsplit(scope["raw_path"].decode("ascii")).path) or "/"
        await self._app(changed, receive, send)


def _client(scope: Scope) -> tuple[str, int] | None:
    """As `x-forwarded-for` has it, which is believed of this machine's own proxies only: the last address
    that is not one of theirs. Anything else in it leaves the proxy itself."""
    client: tuple[str, int] | None = scope["client"]
    told = Headers(scope=scope).getlist("x-forwarded-for")
    if client is None or not told or not _is_own(_address(client[0])):
        return client
    for word in reversed(",".join(told).split(",")):
        address = _address(word.strip())
        if address is None:
            return client
        if not _is_own(address):
            return str(address), 0
    return client


def _is_own(address: _Address | None) -> bool:
    return address is not None and address.is_loopback


def _address(text: str) -> _Address | None:
    """With or without a port, brackets, or the name of an interface."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None
