"""expertmesh keys new NAME: makes an API key. The key is shown once; a server only ever has its hash."""

import argparse
import sys

from coordinator.api.security.api_keys import key_of, new_secret
from coordinator.config.key_limits import Limits, limits_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="new")
    what = "make a key, and the line for the file that `serve --api-key-file` reads"
    new = actions.add_parser("new", help=what, description=what)
    new.add_argument("name", metavar="NAME", help="who uses it; shown in logs")
    new.add_argument("--admin", action="store_true", help="may also use the control service")
    new.add_argument(
        "--limits",
        type=limits_argument,
        default=Limits(),
        metavar="LIMITS",
        help="rps=N,concurrent=N,tokens_per_minute=N (those of --key-limits)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError for a name that is none."""
    secret = new_secret()
    key = key_of(args.name, secret, is_admin=args.admin, limits=args.limits)
    sys.stdout.write(f"key, shown this once:   {secret}\nline for the key file:  {key.line()}\n")
    return 0
