"""A plan that a server follows, as it is told of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from expertmesh.commands.options import Option
from moe_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """`machines`: NAME=ADDRESS each."""

    plan: Annotated[
        Path | None,
        Option(
            "--plan",
            metavar="FILE",
            help="what `expertmesh plan` wrote: which expert is on which worker and machine, and the options "
            "that it was planned with, which may not be given otherwise",
        ),
    ] = None
    machines: Annotated[
        tuple[str, ...],
        Option(
            "--plan-machine",
            metavar="NAME=ADDRESS",
            help="which machine of the cluster is NAME of the plan, by its node's address; may be repeated",
        ),
    ] = ()

    def __post_init__(self) -> None:
        if self.machines and self.plan is None:
            raise ConfigError("--plan-machine needs --plan")
