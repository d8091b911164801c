"""The OTLP/gRPC receiver of traces: checked at start, may be down at any time, never waited for long."""

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from moe_model.errors import ConfigError

logger = logging.getLogger(__name__)

# That a receiver may take to accept the first connection, and at the end the last spans.
CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0
_HINT = "such as http://localhost:4317"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where spans go. As text it is a URL."""

    host: str
    port: int
    encrypted: bool

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Raises ConfigError, without repeating what may be a password."""
        try:
            url = urlsplit(text)
            host, port = url.hostname, url.port
        except ValueError:
            raise _bad("is no URL with a host and a port") from None
        if url.scheme not in ("http", "https") or not url.netloc:
            raise _bad("does not begin with http:// or https://")
        if "@" in url.netloc:
            raise _bad("has a user or a password; set OTEL_EXPORTER_OTLP_HEADERS instead")
        if not host or not host.isascii() or not host.isprintable() or " " in host:
            raise _bad("names no host")
        if not port:
            raise _bad("names no port; OTLP over gRPC has 4317")
        if url.path not in ("", "/") or url.query or url.fragment:
            raise _bad("has a path; OTLP over gRPC has none (port 4318 and /v1/traces are OTLP over HTTP)")
        return cls(host, port, url.scheme == "https")

    def __str__(self) -> str:
        return f"{'https' if self.encrypted else 'http'}://{self.address}"

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def why_not(self) -> str:
        """Why nothing answers there; empty where something does. Takes its time."""
        try:
            socket.create_connection((self.host, self.port), CONNECT_SECONDS).close()
        except TimeoutError:
            return f"no answer within {CONNECT_SECONDS:g} s"
        except OSError as error:
            return error.strerror or str(error)
        except UnicodeError:
            # No name of a host can look like this.
            return "unknown host"
        return ""


class Sender:
    """An exporter that says in one line when spans cannot be sent, and in one more when they can again."""

    def __init__(self, exporter: Any, endpoint: Endpoint) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._is_down = False
        self._given_up = False

    def look(self) -> None:
        """Whether something answers, on a thread of its own; a start does not wait for it."""
        threading.Thread(target=self._look, name="otlp-look", daemon=True).start()

    def export(self, spans: Any) -> Any:
        """As an exporter does: on the processor's thread."""
        if self._given_up:
            return None
        result = self._exporter.export(spans)
        if not self._given_up:
            self._told("" if result.name == "SUCCESS" else "it does not take them")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def close(self, shutdown: Callable[[], None]) -> None:
        """Sends what is left, for CLOSE_SECONDS; what has not gone by then is dropped."""
        ending = threading.Thread(target=shutdown, name="otlp-close", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        if ending.is_alive():
            self._given_up = True
            self._exporter.shutdown()
            logger.warning("the last traces could not be sent to %s", self._endpoint)

    def _look(self) -> None:
        reason = self._endpoint.why_not()
        if reason:
            self._told(reason)
        else:
            logger.info("traces go to %s", self._endpoint)

    def _told(self, reason: str) -> None:
        with self._lock:
            was_down, self._is_down = self._is_down, bool(reason)
        if reason and not was_down:
            text = "traces cannot be sent to %s: %s; they are dropped until they can"
            logger.warning(text, self._endpoint, reason)
        elif was_down and not reason:
            logger.info("traces are sent to %s again", self._endpoint)


def _bad(what: str) -> ConfigError:
    return ConfigError(f"--otlp-endpoint: it {what}; say a URL {_HINT}")
