"""What `serve --plan FILE` makes of the options that were given: the plan's, where they do not contradict."""

import argparse
from dataclasses import replace
from typing import NoReturn

from coordinator.config.plan import PlanConfig
from coordinator.config.serve import ServeConfig
from coordinator.server.plan_file import read_plan
from expertmesh.commands.options import add_options, declared, options_of
from expertmesh.commands.parser import OneLineParser
from moe_model.errors import ConfigError


def config_of(args: argparse.Namespace) -> ServeConfig:
    """The server's configuration, by the plan where there is one. Raises ConfigError for an option that was
    given and is not what the plan has, or that the plan has and there is not."""
    told = options_of(args, PlanConfig)
    if told.plan is None:
        return options_of(args, ServeConfig)
    plan = read_plan(told.plan)
    words = [f"--{name}={value}" for name, value in plan.options.items()]
    parser = _PlanParser(prog=f"plan {told.plan}")
    add_options(parser, ServeConfig)
    planned = parser.parse_args([str(args.checkpoint), *words])
    values = vars(args) | {}
    for each in declared(ServeConfig):
        flag = each.option.flag
        if flag.lstrip("-") not in plan.options:
            continue
        value, given = getattr(planned, each.dest), getattr(args, each.dest)
        if flag in getattr(args, "given_options", ()) and given != value:
            raise ConfigError(f"{flag} {_shown(given)} contradicts the plan's {_shown(value)}")
        values[each.dest] = value
    if values.get("workers_per_node"):
        raise ConfigError(
            "--workers-per-node follows the machines of the cluster, --plan its own: leave one out"
        )
    config = options_of(argparse.Namespace(**values), ServeConfig)
    # Other processes read it again, wherever they are.
    workers = replace(config.workers, plan=told.plan.absolute(), plan_machines=told.machines)
    return replace(config, workers=workers)


class _PlanParser(OneLineParser):
    """Reads the options of a plan."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: options: {message}")


def _shown(value: object) -> str:
    return "off" if value is None else str(value)
