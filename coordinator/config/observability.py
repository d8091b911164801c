"""What a server tells of itself: logs, metrics and traces."""

from dataclasses import dataclass
from typing import Annotated, Literal

from expertmesh.commands.options import Option


@dataclass(frozen=True, slots=True)
class ObservabilityConfig:
    """`metrics_compat`: whose names the metrics have besides their own; `otlp_endpoint` None: no traces."""

    log_format: Annotated[
        Literal["text", "json"], Option("--log-format", help="json: one object per line (%(default)s)")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option("--log-level", help="the least that is shown (%(default)s)"),
    ] = "info"
    metrics_compat: Annotated[
        Literal["vllm"] | None,
        Option("--metrics-compat", help="tell vLLM's metrics under vLLM's names as well"),
    ] = None
    otlp_endpoint: Annotated[
        str | None,
        Option(
            "--otlp-endpoint",
            metavar="URL",
            help="send traces to http://HOST:PORT over OTLP/gRPC, usually port 4317 (needs "
            "expertmesh[tracing])",
        ),
    ] = None
