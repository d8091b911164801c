"""The command `expertmesh`: finds the sub-command's modules and turns our errors into one line.

A command is two modules of coordinator/commands: one has add_arguments(parser), the other run(args) -> exit
code. The first imports nothing heavy and is all that `--help`, a wrong argument and a completion load; the
second is loaded when there is something to run. They are one where the whole command is light.
"""

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TextIO, cast

from coordinator.commands.parser import OneLineParser, did_you_mean, harmless, quoted
from coordinator.commands.start_report import Say, StartReport
from coordinator.server.stop_signals import interruptible, signals_taken
from moe_model.errors import ExpertMeshError


class Entry(NamedTuple):
    """A command: the modules of its arguments and of what it does, and what its help says. `tells`: its start
    takes seconds, and it says what it is at."""

    arguments: str
    runs: str
    help: str
    tells: bool = False


COMMANDS = {
    "serve": Entry(
        "serve_arguments", "serve", "serve a checkpoint with Ray expert workers over gRPC and HTTP", True
    ),
    "generate": Entry("generate_arguments", "generate", "generate from a checkpoint without a server", True),
    "demo": Entry("demo_arguments", "demo", "start everything, stream one generation, stop everything", True),
    "client": Entry("client_arguments", "client", "stream a generation from a server"),
    "top": Entry("top_arguments", "top", "show a server's load, workers, experts and rates, live"),
    "scale": Entry("scale_arguments", "scale", "change the number of a server's workers, while it serves"),
    "experts": Entry(
        "experts_arguments", "experts", "list, exchange, add and retire experts of a running server"
    ),
    "keys": Entry("keys", "keys", "make API keys"),
    "bench": Entry("bench", "bench", "measure this machine: engine, service, dispatch, other systems"),
    "chaos": Entry("chaos", "chaos", "break workers of a live server under load, report what was lost"),
    "import": Entry(
        "import_arguments", "import_checkpoint", "turn a model made by ModularForge into a checkpoint"
    ),
    "inspect": Entry("inspect_arguments", "inspect_checkpoint", "show what a checkpoint holds, verify it"),
    "init": Entry("init_arguments", "init_checkpoint", "write a randomly initialised checkpoint"),
    "completion": Entry("completion_arguments", "completion", "teach a shell to complete this command"),
}


# How these end, they say themselves.
STARTING_RAY = frozenset(("serve", "generate", "demo"))


class Arguments(Protocol):
    """What a command's module of arguments provides."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...


class Tells(Protocol):
    """What it provides as well where the start is told."""

    def say_with(self, args: argparse.Namespace) -> Say | None:
        """How it is told, from before anything heavy is loaded; None for not at all."""


class Runs(Protocol):
    """What a command's other module provides."""

    def run(self, args: argparse.Namespace) -> int: ...


class Completion(Protocol):
    """What answers a shell."""

    def answer(self, parser: argparse.ArgumentParser) -> None: ...


def main(argv: Sequence[str] | None) -> int:
    """As coordinator.cli.main, which calls it."""
    # Closed ones, as by `>&-`: there is something to write to, and nothing comes of it.
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
        cast(Completion, _module("completion")).answer(full_parser())
    if not args or args[0] not in COMMANDS:
        return _top_level(args)
    name, entry = args[0], COMMANDS[args[0]]
    parser = OneLineParser(prog=f"expertmesh {name}", description=entry.help)
    cast(Arguments, _module(entry.arguments)).add_arguments(parser)
    parsed = parser.parse_args(args[1:])
    # grpc reads these when it is imported. It writes lines of its own about ports, whose meaning comes as
    # our errors; and its handlers around a fork, which Ray's start is, can wait for its threads for ever.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    if name not in STARTING_RAY:
        return _run(entry, parsed, parser.prog)
    # Before the first import that starts a thread.
    with signals_taken(for_good=for_good):
        code = _run(entry, parsed, parser.prog)
    if code and for_good:
        # Threads of Ray may wait for ever for a head that is gone; they must not meet the interpreter's end.
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    return code


def _run(entry: Entry, args: argparse.Namespace, prog: str) -> int:
    try:
        with StartReport(sys.stderr) as report:
            if entry.tells:
                args.report = report
                if say := cast(Tells, _module(entry.arguments)).say_with(args):
                    report.say_with(say)
                report("libraries")
            runs = cast(Runs, _module(entry.runs))
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


def _module(name: str) -> object:
    return importlib.import_module(f"coordinator.commands.{name}")


def _complain(prog: str, message: str) -> int:
    sys.stderr.write(f"{prog}: error: {harmless(message)}\n")
    return 1


def full_parser() -> argparse.ArgumentParser:
    """All commands in one, for a shell that asks what may come next."""
    parser = _top_parser()
    actions = parser.add_subparsers(dest="command")
    for name, entry in COMMANDS.items():
        command = actions.add_parser(name, help=entry.help)
        cast(Arguments, _module(entry.arguments)).add_arguments(command)
    return parser


def _top_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="expertmesh",
        usage="expertmesh [-h] [--version] COMMAND ...",
        description="Distributed expert-parallel inference for mixture-of-experts language models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<12}{entry.help}" for name, entry in COMMANDS.items())
        + "\n\n`expertmesh COMMAND --help` has its options.",
    )
    parser.add_argument("--version", action="version", version=_version())
    return parser


def _version() -> str:
    # No command needs what knows it, and it takes as long to load as all the others.
    return str(importlib.import_module("importlib.metadata").version("expertmesh"))


def _top_level(args: list[str]) -> int:
    """Help, version, and what to do with a command that there is not."""
    parser = _top_parser()
    if not args:
        parser.error("a command is missing")
    if not args[0].startswith("-"):
        names = [*COMMANDS, "--help", "--version"]
        parser.error(f"unknown command {quoted(args[0])}{did_you_mean(args[0], names)}")
    parser.parse_args(args)
    return 2
