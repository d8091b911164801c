"""Commands on the pages of deploy/: our parser takes ours with their options, and Ray's takes Ray's."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli as ray_cli

from expertmesh.command_line import full_parser
from tests.deploy.tools import DEPLOY, ROOT

PAGES = sorted(DEPLOY.rglob("README.md"))
# A prompt, and perhaps where it is: `$ `, `# `, `head$    `.
_PROMPT = re.compile(r"^(?:\w*\$|#) +(?P<command>\S.*)$")
_FENCE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:expertmesh|ray) [^`\n]+)`")
_START = re.compile(r"^[( ]*(?:\w+=\S+ +|sudo |exec )*(?:\S*/)?(expertmesh|ray) +(?P<rest>[a-z].*)")
# What stands for a value on a page.
_PLACES = {"HOST:PORT": "h:6380", "HOST:6380": "h:6380", "N": "1", "IP": "10.0.0.4", "HEAD:6379": "h:6379"}


def commands(page: str) -> Iterator[str]:
    """Every command of ours or of Ray's, from its first word to its end; what follows on the line is cut."""
    blocks = [block.replace("\\\n", " ") for block in _FENCE.findall(page)]
    lines = [
        found["command"] for block in blocks for line in block.splitlines() if (found := _PROMPT.match(line))
    ]
    for line in (*lines, *_INLINE.findall(page)):
        plain = re.split(r"\s+# |\s*&&\s*|\s*\|\s*|\s*;\s*|\s+> |\)$", line)
        for part in plain:
            if found := _START.match(part):
                yield f"{found[1]} {found['rest']}"


def problem(command: str) -> str | None:
    """Why nothing could run it; options that stand without a command's own arguments are looked at alone."""
    program, *words = shlex.split(command)
    words = [_PLACES.get(word, word) for word in words]
    return _of_ray(words) if program == "ray" else _of_ours(words)


def _of_ours(words: list[str]) -> str | None:
    parsers: dict[str, argparse.ArgumentParser] = {}
    for action in full_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers |= action.choices
    name, *rest = words
    if name not in parsers:
        return f"no command {name}"
    parser = parsers[name]
    known = _options(parser)
    given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return next((f"{name} has no {option}" for option in given if option not in known), None)


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """With those of its sub-commands."""
    found = {option for action in parser._actions for option in action.option_strings}
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(_options(each) for action in inner for each in action.choices.values()))


def _of_ray(words: list[str]) -> str | None:
    name, *rest = words
    command: click.Command | None = ray_cli.commands.get(name)
    if command is None:
        return f"ray has no command {name}"
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return next((f"ray {name} has no {option}" for option in given if option not in known), None)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_command_of_a_page_exists(path: Path) -> None:
    found = list(commands(path.read_text(encoding="utf-8")))
    assert [(command, why) for command in found if (why := problem(command))] == []


def test_the_pages_have_commands() -> None:
    found = [command for path in PAGES for command in commands(path.read_text(encoding="utf-8"))]
    assert {"serve", "head", "join", "client", "keys", "health"} <= {each.split()[1] for each in found}
    assert {"start", "up", "down"} <= {each.split()[1] for each in found if each.startswith("ray ")}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("$ expertmesh serv model", "no command serv"),
        ("$ expertmesh serve model --worker-per-node 1", "serve has no --worker-per-node"),
        ("# /opt/expertmesh/bin/expertmesh join h:1 --tokenfile x", "join has no --tokenfile"),
        ("head$   expertmesh keys new alice --admins   # a comment", "keys has no --admins"),
        ("$ A=b ~/x/ray start --heads", "ray start has no --heads"),
        ("$ mkdir x && ray stopp", "ray has no command stopp"),
    ],
)
def test_a_command_that_is_not_there_is_found(line: str, why: str) -> None:
    (command,) = commands(f"```console\n{line}\n```\n")
    assert problem(command) == why


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_files_of_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./])(deploy/[\w./*-]+\w)", "\n".join(_FENCE.findall(text))))
    assert {name for name in named if not list(ROOT.glob(name))} == set()
