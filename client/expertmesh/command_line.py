"""The command `expertmesh`: finds the sub-command's modules and turns our errors into one line."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TextIO, cast

from expertmesh.commands.parser import OneLineParser, did_you_mean
from expertmesh.commands.signals import interruptible
from expertmesh.commands.table import CLIENT, COMMANDS, SERVER, SERVER_DISTRIBUTION, Entry
from expertmesh.errors import ExpertMeshError
from expertmesh.shown_text import one_line, quoted

CLIENT_DISTRIBUTION = "expertmesh-client"


class Arguments(Protocol):
    """What a command's module of arguments provides."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...


class Runs(Protocol):
    """What a command's other module provides."""

    def run(self, args: argparse.Namespace) -> int: ...


class Starting(Protocol):
    """What the server's package provides for commands that start Ray."""

    def told(self, arguments: object, args: argparse.Namespace) -> AbstractContextManager[None]:
        """Around the start of a command, whose module of arguments says how it is told."""

    def with_signals(self, work: Callable[[], int], *, for_good: bool) -> int:
        """The exit code of `work`, during which signals are taken by a thread."""


class Completion(Protocol):
    """What answers a shell."""

    def answer(self, parser: argparse.ArgumentParser) -> None: ...


def main(argv: Sequence[str] | None) -> int:
    """As expertmesh.cli.main, which calls it."""
    # The caller may have closed them (`>&-`): what is written then goes nowhere.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model writes any character; a terminal that cannot show one gets a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv), for_good=argv is None)
        finally:
            # Here, where it is caught, and not at the interpreter's end: the reader may have left.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _main(args: list[str], *, for_good: bool) -> int:
    """`for_good`: the process ends with it."""
    if "_ARGCOMPLETE" in os.environ:
        cast(Completion, _module(CLIENT, "completion")).answer(full_parser())
    if not args or args[0] not in COMMANDS:
        return _top_level(args)
    name, entry = args[0], COMMANDS[args[0]]
    if entry.needs_server and not _has_server():
        return _complain(f"expertmesh {name}", _missing(name))
    parser = OneLineParser(prog=f"expertmesh {name}", description=entry.help)
    arguments = _arguments(entry)
    arguments.add_arguments(parser)
    parsed = parser.parse_args(args[1:])
    # grpc reads these when it is imported. It writes lines of its own about ports, whose meaning comes as
    # our errors; and its handlers around a fork, which Ray's start is, can wait for its threads for ever.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    if not entry.starts_ray:
        return _run(entry, parsed, parser.prog, nullcontext())
    starting = cast(Starting, _module(SERVER, "starting"))
    told = starting.told(arguments, parsed)
    return starting.with_signals(lambda: _run(entry, parsed, parser.prog, told), for_good=for_good)


def _run(entry: Entry, args: argparse.Namespace, prog: str, told: AbstractContextManager[None]) -> int:
    try:
        with told:
            runs = cast(Runs, _module(entry.package, entry.runs))
            # Not before all is loaded: an exception out of an import is caught by whatever is imported.
            with interruptible():
                return runs.run(args)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _complain(prog, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ExpertMeshError as error:
        return _complain(prog, str(error))
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for memory that a CPU does not have.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return _complain(prog, "not enough memory")


def _arguments(entry: Entry) -> Arguments:
    return cast(Arguments, _module(entry.package, entry.arguments))


def _module(package: str, name: str) -> object:
    return importlib.import_module(f"{package}.{name}")


def _has_server() -> bool:
    """Asks what is installed, and not what can be imported: other packages may have the names of ours."""
    metadata = importlib.import_module("importlib.metadata")
    return next(iter(metadata.distributions(name=SERVER_DISTRIBUTION)), None) is not None


def _missing(name: str) -> str:
    return f"`{name}` comes with the server: pip install {SERVER_DISTRIBUTION}"


def _complain(prog: str, message: str) -> int:
    sys.stderr.write(f"{prog}: error: {one_line(message)}\n")
    return 1


def commands() -> dict[str, Entry]:
    """Those that can run with what is installed."""
    has_server = _has_server()
    return {name: entry for name, entry in COMMANDS.items() if has_server or not entry.needs_server}


def full_parser() -> argparse.ArgumentParser:
    """All commands in one, for a shell that asks what may come next."""
    parser = _top_parser()
    actions = parser.add_subparsers(dest="command")
    for name, entry in commands().items():
        _arguments(entry).add_arguments(actions.add_parser(name, help=entry.help))
    return parser


def _top_parser() -> OneLineParser:
    found = commands()
    rest = [name for name in COMMANDS if name not in found]
    more = f"\n\nwith the server (pip install {SERVER_DISTRIBUTION}): {', '.join(rest)}" if rest else ""
    parser = OneLineParser(
        prog="expertmesh",
        usage="expertmesh [-h] [--version] COMMAND ...",
        description="Distributed expert-parallel inference for mixture-of-experts language models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<12}{entry.help}" for name, entry in found.items())
        + more
        + "\n\n`expertmesh COMMAND --help` has its options.",
    )
    parser.add_argument("--version", action="version", version=_version())
    return parser


def _version() -> str:
    # No command needs what knows it, and it takes as long to load as all the others.
    return str(importlib.import_module("importlib.metadata").version(CLIENT_DISTRIBUTION))


def _top_level(args: list[str]) -> int:
    """Shows the help or the version, or names the command that may have been meant."""
    parser = _top_parser()
    if not args:
        parser.error("a command is missing")
    if not args[0].startswith("-"):
        names = [*COMMANDS, "--help", "--version"]
        parser.error(f"unknown command {quoted(args[0])}{did_you_mean(args[0], names)}")
    parser.parse_args(args)
    return 2
