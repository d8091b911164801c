"""The arguments that say what a server tells of itself."""

import argparse
import sys

from coordinator.api.shared import logging_setup
from coordinator.server.settings import ObservabilityConfig

LEVELS = ("debug", "info", "warning", "error")


def add_observability_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logs, metrics and traces")
    group.add_argument(
        "--log-format", choices=logging_setup.FORMATS, default="text", help="json: one object per line (text)"
    )
    group.add_argument("--log-level", choices=LEVELS, default="info", help="the least that is shown (info)")
    group.add_argument(
        "--metrics-compat", choices=("vllm",), help="tell vLLM's metrics under vLLM's names as well"
    )
    group.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="send traces to http://HOST:PORT over OTLP/gRPC, usually port 4317 (needs expertmesh[tracing])",
    )


def observability_config(args: argparse.Namespace) -> ObservabilityConfig:
    return ObservabilityConfig(
        log_format=args.log_format,
        log_level=args.log_level,
        vllm_names=args.metrics_compat == "vllm",
        otlp_endpoint=args.otlp_endpoint,
    )


def configure_logging(args: argparse.Namespace) -> None:
    """For the process; called once, by the command that owns it, before it loads what is heavy."""
    config = observability_config(args)
    logging_setup.configure(sys.stderr, config.log_format, config.log_level)
