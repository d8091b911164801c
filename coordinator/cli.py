"""The command `expertmesh`: finds the sub-command's module and turns our errors into one line.

A module in coordinator/commands has HELP, add_arguments(parser) and run(args) -> exit code. It is loaded when
it is asked for, so that a client does not wait for torch and Ray.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn, Protocol, cast

from moe_model.errors import ExpertMeshError

COMMANDS = {
    "serve": ("serve", "serve a checkpoint with Ray expert workers over gRPC and HTTP"),
    "generate": ("generate", "generate from a checkpoint without a server"),
    "demo": ("demo", "start everything, stream one generation, stop everything"),
    "client": ("client", "stream a generation from a server"),
    "top": ("top", "show a server's load, workers, experts and rates, live"),
    "scale": ("scale", "change the number of a server's expert workers"),
    "experts": ("experts", "list, exchange, add and retire experts of a running server"),
    "keys": ("keys", "make API keys"),
    "bench": ("bench", "measure this machine: engine, service, dispatch, other systems"),
    "chaos": ("chaos", "break workers of a live server under load, and report what was lost"),
    "import": ("import_checkpoint", "turn ModularForge files into a checkpoint"),
    "inspect": ("inspect_checkpoint", "show what a checkpoint holds, and verify it"),
    "init": ("init_checkpoint", "write a randomly initialised checkpoint"),
}


class Command(Protocol):
    """What a module in coordinator/commands provides."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (1 for our errors, 2 for usage, 130 for Ctrl-C)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model writes any character; a terminal that cannot show one gets a question mark.
        sys.stdout.reconfigure(errors="replace")
    if not args or args[0] not in COMMANDS:
        return _top_level(args)
    # grpc reads these when it is imported. It writes lines of its own about ports, whose meaning comes as
    # our errors; and its handlers around a fork, which Ray's start is, can wait for its threads for ever.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    module, _ = COMMANDS[args[0]]
    command = cast(Command, importlib.import_module(f"coordinator.commands.{module}"))
    parser = OneLineParser(prog=f"expertmesh {args[0]}", description=command.HELP)
    command.add_arguments(parser)
    return _run(command, parser.parse_args(args[1:]), parser.prog)


def _run(command: Command, args: argparse.Namespace, prog: str) -> int:
    try:
        return command.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(prog, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ExpertMeshError as error:
        return _complain(prog, str(error))
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for memory that a CPU does not have.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return _complain(prog, "not enough memory")


def _complain(prog: str, message: str) -> int:
    # A name from outside may hold anything, also what moves a terminal's cursor.
    shown = "".join(char if char.isprintable() else "?" for char in " ".join(message.split()))
    sys.stderr.write(f"{prog}: error: {shown}\n")
    return 1


def _top_level(args: Sequence[str]) -> int:
    """Help, version, and what to do with a command that there is not."""
    parser = OneLineParser(
        prog="expertmesh",
        description="Distributed expert-parallel inference for mixture-of-experts language models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
        + "\n\n`expertmesh COMMAND --help` has its options.",
    )
    parser.add_argument("--version", action="version", version=metadata.version("expertmesh"))
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.parse_args(args)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
