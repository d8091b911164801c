"""What the pages and comments say is so: lists are complete, files exist, messages are the product's own."""

import argparse
import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.config.serve import ServeConfig
from expertmesh.commands.options import declared
from expertmesh.commands.table import COMMANDS
from expertmesh.v1 import control_pb2, generation_pb2
from tests.coordinator.api.telemetry.test_names import EXPECTED
from tests.tracked import tracked

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / "docs" / "options.md"
DEPLOY = ROOT / "deploy" / "README.md"
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", DEPLOY, *ROOT.glob("docs/*.md")])
PRODUCT = ("coordinator", "expert_workers", "moe_model", "chaos", "scaling")
SERVICES = [
    *generation_pb2.DESCRIPTOR.services_by_name.values(),
    *control_pb2.DESCRIPTOR.services_by_name.values(),
]
# Names of files that are not ours, or are made.
FOREIGN_FILES = re.compile(r"google/.*|_pb2\w*\.py|benchmarks\.service|vllm/.*")
FILE_NAME = re.compile(r"(?<![\w./*{}<-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|c|h|proto|toml|service))\b(?![\w(])")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_grpc_md_has_every_method_of_both_services() -> None:
    section = text_of(ROOT / "docs" / "grpc.md").partition("## The methods")[2].partition("\n## ")[0]
    methods = {method.name for service in SERVICES for method in service.methods}
    assert len(methods) > 12
    assert {name for name in methods if not re.search(rf"\b{name}\b", section)} == set()


def test_operating_md_has_every_method_of_the_control_service() -> None:
    section = text_of(ROOT / "docs" / "operating.md").partition("## The control service")[2]
    experts = text_of(ROOT / "docs" / "experts.md")
    for method in control_pb2.DESCRIPTOR.services_by_name["ControlService"].methods:
        assert method.name in section or method.name in experts, method.name


def test_operating_md_has_every_state_of_a_worker() -> None:
    page = text_of(ROOT / "docs" / "operating.md")
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    states = control_pb2.ExpertWorker.State.keys()
    assert {state.removeprefix("STATE_").lower() for state in states} - {"unspecified"} <= rows


@pytest.mark.parametrize("command", ["serve", "scale", "top"])
def test_every_option_of_an_operator_s_command_is_on_a_page(command: str) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"{COMMANDS[command].package}.{COMMANDS[command].arguments}").add_arguments(
        parser
    )
    pages = "\n".join(text_of(page) for page in PAGES if page != OPTIONS)
    missing = {
        action.option_strings[0]
        for action in parser._actions
        if action.option_strings
        and not any(re.search(rf"{option}(?![\w-])", pages) for option in action.option_strings)
    }
    assert missing == set(), "say them in docs/operating.md"


@pytest.mark.parametrize("script", ["option_page.py", "model_page.py"])
def test_pages_are_what_is_declared(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def said_defaults() -> list[tuple[str, str]]:
    """(flag, default) of every table that operators read, as the page spells it."""
    page = text_of(ROOT / "docs" / "operating.md")
    tables = re.findall(r"^\| option \| default \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [row.split(" | ") for table in tables for row in table.splitlines()]
    named = [(re.findall(r"`(--[\w-]+)`", row[0]), row[1].split(", ")) for row in rows]
    return [
        (flag, default) for flags, defaults in named for flag, default in zip(flags, defaults, strict=False)
    ]


@pytest.mark.parametrize(("flag", "said"), said_defaults())
def test_operating_md_says_the_declared_defaults(flag: str, said: str) -> None:
    default = {each.option.flag: each.default for each in declared(ServeConfig)}[flag]
    spelled = f"{default:g}" if isinstance(default, float) else str(default)
    # None is told in words where it means more than `off`.
    assert said == "off" if default is False else default is None or said.replace(",", "") == spelled


def test_there_are_defaults_on_the_page() -> None:
    assert len(said_defaults()) > 20


def test_every_file_that_is_named_exists() -> None:
    """In pages, comments and docstrings of the product; by the end of its path."""
    files = tracked(".py", ".md", ".c", ".h", ".proto", ".toml", ".service")
    parts = [path.relative_to(ROOT).parts for path in files]
    known = {"/".join(path[start:]) for path in parts for start in range(len(path))}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        if path.relative_to(ROOT).parts[0] != "tests" and not path.name.endswith("_pb2.py")
        for name in FILE_NAME.findall(text_of(path))
        if re.sub(r"^(\.\./)+", "", name) not in known and not FOREIGN_FILES.fullmatch(name)
    ]
    assert wrong == []


def test_operating_md_has_every_metric() -> None:
    """By the name that a page of metrics shows."""
    page = text_of(ROOT / "docs" / "operating.md")
    shown = {name + ("_total" if kind == "counter" else "") for name, (kind, _) in EXPECTED.items()}
    # The page leaves the prefix out where all names of a row have it.
    spelled = {name: rf"\b({name}|{name.removeprefix('expertmesh_')})\b" for name in shown}
    assert {name for name, pattern in spelled.items() if not re.search(pattern, page)} == set()


def pieces() -> list[str]:
    """What the product's own texts are put together from, the longest first."""
    found: set[str] = set()
    for path in tracked(".py"):
        if path.relative_to(ROOT).parts[0] in PRODUCT:
            for node in ast.walk(ast.parse(text_of(path))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                    found.update(piece.strip() for piece in re.split(r"%\S*[a-z]", node.value))
    return sorted((piece for piece in found if len(piece) > 3), key=len, reverse=True)


def quoted() -> list[tuple[str, str]]:
    """(page, message) for all that pages quote from the product: what commands end with, and what is between
    quotation marks in deploy/README.md."""
    found = [
        (page.name, line)
        for page in PAGES
        for line in re.findall(r"^expertmesh \w+: error: (.+)$", text_of(page), re.MULTILINE)
    ]
    said = re.findall(r'"([^"]{12,})"', text_of(DEPLOY))
    return found + [("deploy", " ".join(message.split())) for message in said]


@pytest.mark.parametrize(("page", "message"), quoted())
def test_every_message_that_is_quoted_is_the_product_s(page: str, message: str) -> None:
    left = message
    for piece in pieces():
        left = left.replace(piece, " ")
    # What is put in has no words: names of hosts, numbers, addresses.
    words = re.findall(r"(?<![\w.:/-])[a-z']{4,}(?![\w.:/-])", left)
    assert set(words) <= {"host"}, f"{page} quotes {message!r}; of that nobody says {words}"
