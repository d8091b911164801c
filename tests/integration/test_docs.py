"""Every example of docs/grpc.md and docs/http.md is run against a real server, and prints what it says.

In Python a comment behind a print, in a shell a comment of its own line is a part of what is printed.
"""

import argparse
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.arguments import PARSERS
from expertmesh.commands.table import COMMANDS
from tests.integration.processes import DEMO_CHECKPOINT, Server

ROOT = DEMO_CHECKPOINT.parents[1]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("grpc.md", "http.md")}
EVERY_PAGE = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "deploy" / "README.md", *(ROOT / "docs").glob("*.md")]
)
# Options of ray, curl and what deploys that pages mention.
FOREIGN = {"--head", "--port", "--address", "--include-dashboard", "--disable-usage-stats", "--generate"} | {
    *("--cacert", "--cert", "--key"),
    *("--nodes", "--values", "--install", "--wait", "--file", "--now"),
    *("--ignore-daemonsets", "--delete-emptydir-data"),
    # Of `ray start`, whose ports a firewall has to know.
    *("--node-manager-port", "--object-manager-port", "--runtime-env-agent-port", "--metrics-export-port"),
    *("--dashboard-agent-grpc-port", "--dashboard-agent-listen-port", "--ray-client-server-port"),
    *("--min-worker-port", "--max-worker-port", "--num-cpus"),
    # Of sbatch.
    "--time",
    # Of guidellm and aiperf.
    *("--backend", "--profile", "--constraint", "--data", "--output", "--tokenizer"),
    *("--url", "--endpoint-type", "--streaming", "--request-count", "--request-rate", "--arrival-pattern"),
    *("--isl", "--osl", "--extra-inputs", "--ui"),
    # Of `vllm bench serve`, and of lm-eval, whose --log_samples is cut where the pattern ends.
    *("--base-url", "--dataset-name", "--random-input-len", "--random-output-len", "--num-prompts"),
    *("--max-concurrency", "--save-result", "--save-detailed", "--tasks", "--log"),
}
# As the pages have them, and as the server's READY line calls them.
ADDRESSES = {"127.0.0.1:50051": "grpc", "127.0.0.1:50052": "control", "127.0.0.1:8000": "http"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def examples(language: str) -> list[tuple[str, int]]:
    return [(page, number) for page in PAGES for number in range(len(blocks(page, language)))]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As both pages start it, with the template that http.md shows."""
    folder = tmp_path_factory.mktemp("docs")
    (template,) = blocks("http.md", "jinja")
    (folder / "chat.jinja").write_text(template, encoding="utf-8")
    options = ["--model-name", "demo", "--chat-template", str(folder / "chat.jinja"), "--routed-experts"]
    with Server(str(DEMO_CHECKPOINT), "--workers", "0", *options, log=folder / "log") as running:
        running.wait_ready()
        yield running


def at(server: Server, example: str) -> str:
    """Other ports only, so that the test can run beside a server."""
    for written, name in ADDRESSES.items():
        example = example.replace(written, server.address_of(name))
    return example


def output_of(command: Sequence[str]) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(("page", "number"), examples("python"))
def test_python(server: Server, page: str, number: int) -> None:
    source = blocks(page, "python")[number]
    printed = output_of([sys.executable, "-c", at(server, source)])
    assert printed.strip()
    for said in re.findall(r"^ *print\(.*\)  # (.+)$", source, re.MULTILINE):
        assert said in printed


@pytest.mark.parametrize(("page", "number"), examples("sh"))
def test_shell(server: Server, page: str, number: int) -> None:
    source = blocks(page, "sh")[number]
    commands = ["set -euo pipefail", f'expertmesh() {{ {sys.executable} -m expertmesh.cli "$@"; }}']
    printed = output_of(["bash", "-c", "\n".join([*commands, at(server, source)])])
    promised = re.findall(r"^# (.+)$", source, re.MULTILINE)
    assert promised
    for said in promised:
        assert said in printed


def test_node(server: Server) -> None:
    """Where its two packages are installed; `make examples` installs them."""
    modules = ROOT / "node_modules" / "@grpc"
    if shutil.which("node") is None or not modules.is_dir():
        pytest.skip("node with @grpc/grpc-js and @grpc/proto-loader is not here: make examples")
    printed = output_of(["node", "docs/examples/generate.js", server.address, "def main():"])
    assert printed.strip().endswith("20 tokens")


def test_operating_names_every_metric(server: Server) -> None:
    with urlopen(f"http://{server.address_of('http')}/metrics") as response:
        names = re.findall(r"^# TYPE (\S+)", response.read().decode(), re.MULTILINE)
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Metrics")
    told = re.findall(r"`(\w+)`", section.partition("## Traces")[0])
    bare = [{name.removeprefix("expertmesh_") for name in each} for each in (names, told)]
    assert bare[0] - bare[1] == set()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_exists(page: Path) -> None:
    known = set(FOREIGN)
    for entry in COMMANDS.values():
        parser = argparse.ArgumentParser()
        importlib.import_module(f"{entry.package}.{entry.arguments}").add_arguments(parser)
        known |= options(parser)
    for make_parser in PARSERS.values():
        known |= options(make_parser())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text(encoding="utf-8")))
    assert named - known == set()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def options(parser: argparse.ArgumentParser) -> set[str]:
    """With those of its sub-commands."""
    found = {option for action in parser._actions for option in action.option_strings}
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(options(each) for action in inner for each in action.choices.values()))
