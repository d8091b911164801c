"""The arguments of `expertmesh serve`: all of a server's configuration."""

import argparse
import logging
import sys

from coordinator.api.shared import logging_setup
from coordinator.commands.start_report import Say, to_log
from coordinator.config.observability import ObservabilityConfig
from coordinator.config.serve import ServeConfig
from expertmesh.commands.options import add_options, options_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ServeConfig)


def say_with(args: argparse.Namespace) -> Say:
    """The log is set up with it, before anything heavy is loaded: its first line is that libraries load."""
    config = options_of(args, ObservabilityConfig)
    logging_setup.configure(sys.stderr, config.log_format, config.log_level)
    return to_log(logging.getLogger("coordinator.commands.serve"))
