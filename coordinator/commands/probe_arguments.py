"""The arguments of `expertmesh probe`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option, add_options
from expertmesh.commands.values import whole_number


@dataclass(frozen=True, slots=True)
class ProbeArguments:
    """What is measured, where, and where the numbers go."""

    out: Annotated[
        Path,
        Option(
            "--out",
            metavar="FILE",
            help="what `plan` and `simulate` read; of --check: the file that is read (%(default)s)",
        ),
    ] = Path("machines.json")
    quick: Annotated[bool, Option("--quick", help="less of everything, in less than a minute; rougher")] = (
        False
    )
    passes: Annotated[
        int,
        Option(
            "--passes",
            parse=whole_number(1, 20),
            metavar="N",
            help="measure all of it N times and take medians: of machines that others use too (%(default)s)",
        ),
    ] = 1
    all_forms: Annotated[bool, Option("--all", help="products in q8 and q4 as well")] = False
    model: Annotated[
        tuple[Path, ...],
        Option(
            "--model",
            parse=Path,
            metavar="MODEL",
            help="say what bounds its steps there; a checkpoint's folder or a config.json; may be repeated",
        ),
    ] = ()
    ray_address: Annotated[
        str | None,
        Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="measure each machine of a running cluster, one at a time, and the network between them "
            "(default: this machine alone)",
        ),
    ] = None
    insecure: Annotated[
        bool, Option("--insecure", help="use --ray-address also where Ray asks for no token")
    ] = False
    names: Annotated[bool, Option("--names", help="write machines' own names, and not m0, m1, ...")] = False
    check: Annotated[
        bool,
        Option(
            "--check",
            help="predict steps of models that nothing was fitted to by the first machine of --out, measure "
            "them here, and show how far it was off; writes nothing",
        ),
    ] = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ProbeArguments)
