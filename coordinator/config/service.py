"""A server: where it listens, how much it takes in, how long it waits."""

from dataclasses import dataclass
from typing import Annotated

from coordinator.config.origins import origins_of
from expertmesh.commands.options import Option
from expertmesh.commands.values import number_of_fronts, positive, positive_seconds, seconds
from moe_model.errors import ConfigError

OFF = "off"


def _or_off(text: str) -> str | None:
    return None if text == OFF else text


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, as HOST:PORT; None: not at all. Metrics are on the HTTP port as well."""

    grpc: Annotated[
        str,
        Option(
            "--grpc-address", metavar="HOST:PORT", help="GenerationService; port 0 picks one (%(default)s)"
        ),
    ] = "127.0.0.1:50051"
    http: Annotated[
        str | None,
        Option(
            "--http-address",
            parse=_or_off,
            metavar="HOST:PORT",
            help="the OpenAI-compatible API, health and metrics; port 0 picks one, `off` for none "
            "(%(default)s)",
        ),
    ] = "127.0.0.1:8000"
    control: Annotated[
        str | None,
        Option(
            "--control-address",
            parse=_or_off,
            metavar="HOST:PORT",
            help="ControlService, for operators only; port 0 picks one, `off` for none (%(default)s)",
        ),
    ] = "127.0.0.1:50052"
    metrics: Annotated[
        str | None,
        Option(
            "--metrics-address",
            parse=_or_off,
            metavar="HOST:PORT",
            help="metrics on a port of their own; port 0 picks one, `off` for none (off)",
        ),
    ] = None
    health: Annotated[
        str | None,
        Option(
            "--health-address",
            parse=_or_off,
            metavar="HOST:PORT",
            help="gRPC health and nothing else, without TLS and keys, for probes; port 0 picks one, `off` "
            "for none (off)",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.grpc == OFF:
            raise ConfigError("--grpc-address: cannot be off")

    def all(self) -> dict[str, str]:
        """By what listens there."""
        found = {**self._guarded(), "health": self.health}
        return {name: address for name, address in found.items() if address is not None}

    def guarded(self) -> dict[str, str]:
        """Those that strangers must not reach: whether a server can serve is no secret."""
        return {name: address for name, address in self._guarded().items() if address is not None}

    def _guarded(self) -> dict[str, str | None]:
        return {"grpc": self.grpc, "http": self.http, "control": self.control, "metrics": self.metrics}


@dataclass(frozen=True, slots=True)
class ProcessesConfig:
    """Which parts of a server are processes of their own."""

    with_engine: Annotated[
        bool,
        Option(
            "--engine-process",
            negatable=True,
            help="run the engine in a process of its own, which is started again when it dies; otherwise all "
            "but workers is one process (on)",
        ),
    ] = True
    num_fronts: Annotated[
        int,
        Option(
            "--fronts",
            parse=number_of_fronts,
            metavar="N",
            help="processes that take requests, all of them at the same ports (%(default)s)",
        ),
    ] = 1

    def __post_init__(self) -> None:
        if self.num_fronts > 1 and not self.with_engine:
            raise ConfigError(f"--fronts: {self.num_fronts} need --engine-process")


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """`max_requests` bounds sequences that run or wait, `max_tokens` the prompt tokens of those that wait."""

    max_requests: Annotated[
        int,
        Option(
            "--max-queue-requests",
            parse=positive,
            metavar="N",
            help="sequences that may run or wait; more are refused at once (%(default)s)",
        ),
    ] = 256
    max_tokens: Annotated[
        int,
        Option(
            "--max-queue-tokens",
            parse=positive,
            metavar="N",
            help="prompt tokens that may wait; more are refused at once (%(default)s)",
        ),
    ] = 1 << 18


@dataclass(frozen=True, slots=True)
class ReadinessConfig:
    """Seconds; `patience` is how many bad looks in a row make a server not ready."""

    interval: float = 0.25
    stall_timeout: Annotated[
        float,
        Option(
            "--stall-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds that requests may run without a step until it is not ready (%(default)g)",
        ),
    ] = 60.0
    patience: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsConfig:
    """How calls are taken and ended; times in seconds. `strict_fields` refuses what a request says and this
    server does not know; pages of `allowed_origins` may use the HTTP API from a browser."""

    strict_fields: Annotated[
        bool,
        Option(
            "--strict-fields",
            help="refuse requests with fields that this server does not know; otherwise it says which ones "
            "it passed over",
        ),
    ] = False
    allowed_origins: Annotated[
        tuple[str, ...],
        Option(
            "--allowed-origins",
            convert=origins_of,
            metavar="ORIGIN[,...]",
            help="web pages that may use the HTTP API from a browser, such as https://app.example, or `*`; "
            "may be repeated (none)",
        ),
    ] = ()

    write_stall_timeout: Annotated[
        float,
        Option(
            "--write-stall-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds that a client may read nothing until its request ends (%(default)g)",
        ),
    ] = 60.0
    # Longer than the pools of proxies keep theirs (60 to 75 s): the server, which a request may be on its way
    # to, must not be the one that closes.
    keep_alive_timeout: Annotated[
        float,
        Option(
            "--keep-alive-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds that a quiet HTTP connection is kept open; longer than a proxy in front of it "
            "keeps its own (%(default)g)",
        ),
    ] = 90.0
    drain_timeout: Annotated[
        float,
        Option(
            "--drain-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds that running requests get after SIGTERM (%(default)g)",
        ),
    ] = 30.0
    withdrawal_grace: Annotated[
        float,
        Option(
            "--withdrawal-grace",
            parse=seconds,
            metavar="S",
            help="seconds after SIGTERM in which it still takes requests, while it says that it is not "
            "ready, for balancers to hear of it (%(default)g; none after Ctrl-C)",
        ),
    ] = 5.0
