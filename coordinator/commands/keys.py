"""expertmesh keys new NAME: makes an API key. The key is shown once; a server only ever has its hash."""

import argparse
import sys
from dataclasses import dataclass
from typing import Annotated

from coordinator.api.security.api_keys import key_of, new_secret
from coordinator.config.key_limits import NO_LIMITS, Limits, limits_argument
from expertmesh.commands.options import Option, add_options, options_of


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is for."""

    name: Annotated[str, Option("NAME", help="who uses it; shown in logs")]
    admin: Annotated[bool, Option("--admin", help="may also use the control service")] = False
    limits: Annotated[
        Limits,
        Option(
            "--limits",
            parse=limits_argument,
            metavar="LIMITS",
            help="rps=N,concurrent=N,tokens_per_minute=N (those of --key-limits)",
        ),
    ] = NO_LIMITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="new")
    what = "make a key, and the line for the file that `serve --api-key-file` reads"
    add_options(actions.add_parser("new", help=what, description=what), NewKey)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError for a name that is none."""
    given, secret = options_of(args, NewKey), new_secret()
    key = key_of(given.name, secret, is_admin=given.admin, limits=given.limits)
    sys.stdout.write(f"key, shown this once:   {secret}\nline for the key file:  {key.line()}\n")
    return 0
