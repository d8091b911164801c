"""The arguments of `serve`: where it listens, how much it takes in, how it presents the model."""

import argparse
import logging
from pathlib import Path

from coordinator.commands.engine_arguments import (
    add_engine_arguments,
    add_worker_arguments,
)
from coordinator.commands.observability_arguments import add_observability_arguments, configure_logging
from coordinator.commands.security_arguments import add_security_arguments
from coordinator.commands.start_report import Say, to_log
from coordinator.engine.options import ContextOverflow
from coordinator.server.settings import (
    Addresses,
    AdmissionConfig,
    GenerationConfig,
    ModelOptions,
    ReadinessConfig,
    ServiceTimes,
)
from expertmesh.commands.values import positive, positive_seconds
from moe_model.errors import ConfigError

OFF = "off"
MAX_NUM_SEQUENCES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    _add_service_arguments(parser)
    _add_model_arguments(parser)
    add_security_arguments(parser)
    add_observability_arguments(parser)
    add_worker_arguments(parser, default_workers=2)
    add_engine_arguments(parser)


def say_with(args: argparse.Namespace) -> Say:
    """The log is set up with it: its first line is that libraries load."""
    configure_logging(args)
    return to_log(logging.getLogger("coordinator.commands.serve"))


def _add_service_arguments(parser: argparse.ArgumentParser) -> None:
    default, admission = Addresses(), AdmissionConfig()
    group = parser.add_argument_group("service")
    for name, what in (
        ("grpc", "GenerationService"),
        ("http", "the OpenAI-compatible API, health and metrics"),
        ("control", "ControlService, for operators only"),
        ("metrics", "metrics on a port of their own"),
    ):
        where = getattr(default, name)
        group.add_argument(
            f"--{name}-address",
            default=where or OFF,
            metavar="HOST:PORT",
            help=f"{what}; port 0 picks one{'' if name == 'grpc' else ', `off` for none'} ({where or OFF})",
        )
    for name, value, what in (
        ("--max-queue-requests", admission.max_requests, "sequences that may run or wait"),
        ("--max-queue-tokens", admission.max_tokens, "prompt tokens that may wait"),
    ):
        text = f"{what}; more are refused at once ({value})"
        group.add_argument(name, type=positive, default=value, metavar="N", help=text)
    group.add_argument(
        "--strict-fields",
        action="store_true",
        help="refuse requests with fields that this server does not know; otherwise it says which ones it "
        "passed over",
    )
    group.add_argument(
        "--allowed-origins",
        action="append",
        default=[],
        metavar="ORIGIN[,...]",
        help="web pages that may use the HTTP API from a browser, such as https://app.example, or `*`; may "
        "be repeated (none)",
    )
    _add_times(group)


def _add_times(group: argparse._ArgumentGroup) -> None:
    readiness, serve = ReadinessConfig(), ServiceTimes()
    for name, default, what in (
        (
            "--stall-timeout",
            readiness.stall_timeout,
            "that requests may run without a step until it is not ready",
        ),
        (
            "--write-stall-timeout",
            serve.write_stall_timeout,
            "that a client may read nothing until its request ends",
        ),
        (
            "--keep-alive-timeout",
            serve.keep_alive_timeout,
            "that a quiet HTTP connection is kept open; longer than a proxy in front of it keeps its own",
        ),
        ("--drain-timeout", serve.drain_timeout, "that running requests get after SIGTERM"),
    ):
        text = f"seconds {what} ({default:g})"
        group.add_argument(name, type=positive_seconds, default=default, metavar="S", help=text)
    group.add_argument(
        "--withdrawal-grace",
        type=_seconds_or_none,
        default=serve.withdrawal_grace,
        metavar="S",
        help="seconds after SIGTERM in which it still takes requests, while it says that it is not ready, "
        f"for balancers to hear of it ({serve.withdrawal_grace:g}; none after Ctrl-C)",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    default = ModelOptions()
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-name", metavar="NAME", help="name clients know (default: the folder's, as given)"
    )
    group.add_argument(
        "--model-alias", action="append", default=[], metavar="NAME", help="another name; may be repeated"
    )
    group.add_argument(
        "--max-output-tokens",
        type=positive,
        default=default.max_output_tokens,
        metavar="N",
        help=f"most tokens one sequence may have ({default.max_output_tokens})",
    )
    group.add_argument(
        "--max-num-sequences",
        type=_num_sequences,
        default=default.max_num_sequences,
        metavar="N",
        help=f"most sequences one request may ask for ({default.max_num_sequences})",
    )
    group.add_argument(
        "--context-overflow",
        choices=[one.value for one in ContextOverflow],
        default=default.context_overflow.value,
        metavar="stop|slide",
        help="for requests that do not say: stop at the end of the context, or slide (stop)",
    )
    group.add_argument(
        "--generation-config",
        choices=[one.value for one in GenerationConfig],
        default=default.generation_config.value,
        metavar="model|none",
        help="defaults of sampling: the checkpoint's, or neutral ones (model)",
    )
    group.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="Jinja template (default: the checkpoint's own)"
    )
    group.add_argument(
        "--routed-experts",
        action="store_true",
        help="let requests ask which experts their tokens were routed to",
    )


def addresses(args: argparse.Namespace) -> Addresses:
    """Raises ConfigError for a server without gRPC."""
    if args.grpc_address == OFF:
        raise ConfigError("--grpc-address: cannot be off")
    return Addresses(
        grpc=args.grpc_address,
        control=_address(args.control_address),
        http=_address(args.http_address),
        metrics=_address(args.metrics_address),
    )


def admission_config(args: argparse.Namespace) -> AdmissionConfig:
    return AdmissionConfig(args.max_queue_requests, args.max_queue_tokens)


def readiness_config(args: argparse.Namespace) -> ReadinessConfig:
    return ReadinessConfig(stall_timeout=args.stall_timeout)


def model_options(args: argparse.Namespace) -> ModelOptions:
    return ModelOptions(
        name=args.model_name,
        aliases=tuple(args.model_alias),
        max_output_tokens=args.max_output_tokens,
        max_num_sequences=args.max_num_sequences,
        context_overflow=ContextOverflow(args.context_overflow),
        generation_config=GenerationConfig(args.generation_config),
        chat_template=args.chat_template,
        allow_routed_experts=args.routed_experts,
    )


def _address(text: str) -> str | None:
    return None if text == OFF else text


def _num_sequences(text: str) -> int:
    value = positive(text)
    if value > MAX_NUM_SEQUENCES:
        raise argparse.ArgumentTypeError(f"{value} is more than {MAX_NUM_SEQUENCES}")
    return value


def _seconds_or_none(text: str) -> float:
    return 0.0 if text == "0" else positive_seconds(text)
