"""The arguments of `expertmesh plan`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from coordinator.commands.model_options import JSON, LAYERS, MODEL, TRACE
from coordinator.config.engine import DTYPE, number_or_off
from expertmesh.commands.options import Option, add_options
from expertmesh.commands.values import positive, positive_number, whole_number
from moe_model.names import DtypeName

# Of these there are at most as many as there are machines.
_SURVIVED = whole_number(0, 1000)


def _number_or_auto(text: str) -> int | None:
    return None if text == "auto" else positive(text)


@dataclass(frozen=True, slots=True)
class PlanArguments:
    """For which model and machines, and what is wanted of them."""

    model: Annotated[Path, MODEL]
    machines: Annotated[
        str,
        Option(
            "--machines",
            metavar="FILE|HOST:PORT",
            help="what `expertmesh probe` wrote, or the address of a running Ray cluster, which is probed",
        ),
    ]
    insecure: Annotated[
        bool, Option("--insecure", help="probe --machines HOST:PORT also where Ray asks for no token")
    ] = False
    trace: Annotated[str | None, TRACE] = None
    objective: Annotated[
        Literal["throughput", "latency"],
        Option(
            "--objective",
            help="throughput: most tokens a second; latency: least time between two tokens of one stream "
            "(%(default)s)",
        ),
    ] = "throughput"
    max_gap_ms: Annotated[
        float | None,
        Option(
            "--max-gap",
            parse=number_or_off,
            metavar="MS",
            help="most milliseconds between two tokens of a stream; `off` for any (off)",
        ),
    ] = None
    survive: Annotated[
        int | None,
        Option(
            "--survive",
            parse=_SURVIVED,
            metavar="K",
            help="so many machines with experts may be lost at once, and each expert still has a holder "
            "(1 where it fits)",
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        Option(
            "--concurrency", parse=positive, metavar="N", help="sequences at once (as the objective has it)"
        ),
    ] = None
    context: Annotated[
        int,
        Option("--context", parse=positive, metavar="N", help="tokens of a sequence, mean (%(default)s)"),
    ] = 1024
    dtype: Annotated[DtypeName, DTYPE] = "bfloat16"
    expert_dtype: Annotated[
        Literal["auto", "model", "int8", "q8", "q4", "mxfp4", "fp8"],
        Option(
            "--expert-dtype",
            help="of the experts' matrices; auto: the first of model, q8 and q4 that fits (%(default)s)",
        ),
    ] = "model"
    expert_slices: Annotated[
        int | None,
        Option(
            "--expert-slices",
            parse=_number_or_auto,
            metavar="S",
            help="blocks that each expert is cut into; auto: up to 8, where it is quicker (%(default)s)",
        ),
    ] = 1
    coordinator: Annotated[
        str | None, Option("--coordinator", metavar="NAME", help="the machine that coordinates (the best)")
    ] = None
    coordinator_only: Annotated[
        bool, Option("--coordinator-only", help="the machine that coordinates has no worker")
    ] = False
    num_layers: Annotated[int | None, LAYERS] = None
    seconds: Annotated[
        float,
        Option(
            "--seconds", parse=positive_number, metavar="S", help="of searching for a placement (%(default)g)"
        ),
    ] = 10.0
    seed: Annotated[
        int,
        Option(
            "--seed",
            parse=whole_number(0, 2**31),
            metavar="N",
            help="of the steps that are drawn (%(default)s)",
        ),
    ] = 0
    no_what_if: Annotated[
        bool, Option("--no-what-if", help="do not plan with one more machine, and so on")
    ] = False
    out: Annotated[Path | None, Option("--out", metavar="FILE", help="write the plan for `serve --plan`")] = (
        None
    )
    json: Annotated[bool, JSON] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, PlanArguments)
