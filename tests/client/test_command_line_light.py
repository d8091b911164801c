"""What the command line loads: nothing heavy to explain itself, neither torch nor Ray to talk to a server.

Held by what is imported, in a fresh interpreter, and not by the clock.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from expertmesh.command_line import full_parser
from expertmesh.commands.table import COMMANDS

OURS = {"coordinator", "moe_model", "expert_workers", "expertmesh", "chaos", "benchmarks"}
RUN = """
import sys
at_start = {name.partition(".")[0] for name in sys.modules}
from expertmesh.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
loaded = {name.partition(".")[0] for name in sys.modules} - at_start - sys.stdlib_module_names
print("\\nLOADED", code, *loaded)
"""


def loaded(*arguments: str) -> tuple[int, set[str]]:
    """The exit code, and every package that a command has loaded by its end, but Python's own and ours."""
    command = [sys.executable, "-c", RUN, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    code, *names = result.stdout.rpartition("\nLOADED")[2].split()
    return int(code), set(names) - OURS


def every_parser(parser: argparse.ArgumentParser, *path: str) -> Iterator[tuple[str, ...]]:
    """The words before `--help` of every command and of every action of one."""
    yield path
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from every_parser(below, *path, name)


def test_there_are_actions_below_commands() -> None:
    paths = set(every_parser(full_parser()))
    assert {(), ("serve",), ("experts", "replace"), ("keys", "new")} <= paths
    assert {path[0] for path in paths if path} == set(COMMANDS)


@pytest.mark.parametrize(
    "path", list(every_parser(full_parser())), ids=lambda path: " ".join(path) or "expertmesh"
)
def test_help_loads_only_the_standard_library(path: tuple[str, ...]) -> None:
    assert loaded(*path, "--help") == (0, set())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serv"],
        ["serve"],
        ["serve", "x", "--replica", "2"],
        ["serve", "x", "--dtype", "float"],
        ["generate", "x"],
        ["top"],
        ["experts", "replace", "x"],
        ["import", "x"],
    ],
)
def test_a_usage_error_loads_only_the_standard_library(arguments: list[str]) -> None:
    assert loaded(*arguments) == (2, set())


def test_the_version_loads_only_the_standard_library() -> None:
    assert loaded("--version") == (0, set())


@pytest.mark.parametrize(
    "arguments",
    [
        ["client", "127.0.0.1:1", "--prompt", "x", "--timeout", "0.1"],
        ["top", "127.0.0.1:1", "--count", "1"],
        ["scale", "127.0.0.1:1", "--workers", "1", "--timeout", "0.1"],
        ["experts", "list", "127.0.0.1:1"],
        ["keys", "new", "somebody"],
        ["completion", "bash"],
    ],
)
def test_what_needs_no_model_loads_neither_torch_nor_ray(arguments: list[str]) -> None:
    _, names = loaded(*arguments)
    assert names & {"torch", "ray", "numpy", "tokenizers", "safetensors"} == set()
