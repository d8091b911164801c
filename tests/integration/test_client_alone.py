"""The client's distribution alone: its wheel in an environment of its own, asked from a user's own folder.

The folder holds packages with the names of ours, and gRPC code that the user has generated from our .proto
files: where this machine has the generator, by it, else a copy of what is committed, which is the same bytes
(`make check`).
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.integration.client_alone import ROOT, ClientAlone, closure, install_client
from tests.integration.foreign_folder import foreign_folder
from tests.integration.processes import DEMO_CHECKPOINT, Server

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = {
    kind: source
    for source in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for kind in re.findall(r"from expertmesh import (\w+)", source)
}
GENERATOR = ROOT / ".venv-protos" / "bin" / "python"
ADDRESS = "127.0.0.1:50051"

LOADED = """
import sys, time
before, began = set(sys.modules), time.process_time()
from expertmesh import AsyncClient, Client, Delta
print(time.process_time() - began)
found = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
# What Cython adds to grpc's own has names that change.
print(*(name for name in found if "cython" not in name))
"""

# The libraries alone.
BARE = """
import time
began = time.process_time()
import grpc.aio, grpc_health.v1.health_pb2, grpc_health.v1.health_pb2_grpc
import google.protobuf.json_format, google.rpc.status_pb2, google.rpc.error_details_pb2, typing_extensions
print(time.process_time() - began)
"""

# The user's own code and ours in one process, in both orders, over one channel.
BESIDE = """
{first}
{second}
import grpc

assert theirs.__file__ != ours.__file__, "one module, and not two"
assert theirs.DESCRIPTOR.name == ours.DESCRIPTOR.name == "expertmesh/v1/generation.proto"
with grpc.insecure_channel("{address}") as channel:
    stub = theirs_grpc.GenerationServiceStub(channel)
    request = theirs.GenerateRequest(text="x", stopping=ours.StoppingParams(max_tokens=3))
    answer = stub.Generate(request, timeout=60)
with expertmesh.Client("{address}") as client:
    assert client.generate("x", max_tokens=3).usage.completion_tokens == answer.usage.completion_tokens
print(answer.usage.completion_tokens)
"""
OURS = "import expertmesh; from expertmesh.v1 import generation_pb2 as ours"
THEIRS = (
    "from made.expertmesh.v1 import generation_pb2 as theirs, generation_pb2_grpc as theirs_grpc; "
    "from made.expertmesh.v1 import control_pb2"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> ClientAlone:
    return install_client(tmp_path_factory.mktemp("client-alone"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = foreign_folder(tmp_path_factory.mktemp("user"))
    # Below a package of the user's, and as protoc writes it where it is called.
    for made in (found / "made", found):
        made.mkdir(exist_ok=True)
        generate(made)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a worker that needs no Ray."""
    options = ["--workers", "1", "--transport", "in-process"]
    with Server(str(DEMO_CHECKPOINT), *options, log=tmp_path_factory.mktemp("log") / "log") as running:
        running.wait_ready()
        yield running


def generate(out: Path) -> None:
    """`protoc -I protos`, into `out`."""
    sources = sorted(
        path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto")
    )
    assert len(sources) == 2
    if GENERATOR.exists():
        kinds = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
        command = [str(GENERATOR), "-m", "grpc_tools.protoc", "-I", "protos", *kinds, *sources]
        subprocess.run(command, cwd=ROOT, timeout=60, check=True)
        return
    for path in (ROOT / "client" / "expertmesh" / "v1").glob("*_pb2*.py"):
        (out / "expertmesh" / "v1").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / "expertmesh" / "v1")


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def run_script(alone: ClientAlone, folder: Path, source: str) -> str:
    """As a file in the user's folder, which then stands first where Python looks for modules."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    done = run(alone.python, "script.py", folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_no_server_in_it(alone: ClientAlone) -> None:
    needed = closure(metadata.distribution("expertmesh-client"))
    assert {"grpcio", "protobuf", "googleapis-common-protos", "grpcio-health-checking"} <= needed
    assert not needed & {"torch", "ray", "numpy", "tokenizers", "safetensors", "starlette"}
    there = {path.name for path in alone.packages.iterdir()}
    assert "expertmesh" in there
    assert not there & {
        "coordinator",
        "expert_workers",
        "moe_model",
        "protos",
        "benchmarks",
        "chaos",
        "torch",
    }


def test_the_import_loads_four_libraries_in_a_third_of_a_second(alone: ClientAlone, folder: Path) -> None:
    """Of the processor's time, so that a busy machine does not count, the best of five; on a slow one, little
    more than the libraries alone."""
    rounds = [run_script(alone, folder, LOADED).split() for _ in range(5)]
    known = {"expertmesh", "grpc", "grpc_health", "google", "typing_extensions"}
    assert {name for _, *names in rounds for name in names} - known == set()
    bare = min(float(run_script(alone, folder, BARE)) for _ in range(5))
    assert min(float(seconds) for seconds, *_ in rounds) < max(0.3, 1.4 * bare)


@pytest.mark.parametrize(("kind", "said"), [("Client", " length 20\n"), ("AsyncClient", "['")])
def test_the_examples_of_the_readme(
    alone: ClientAlone, folder: Path, server: Server, kind: str, said: str
) -> None:
    assert said in run_script(alone, folder, EXAMPLES[kind].replace(ADDRESS, server.address))


@pytest.mark.parametrize(("first", "second"), [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours", "theirs"])
def test_the_users_own_stubs_and_ours_are_in_one_process(
    alone: ClientAlone, folder: Path, server: Server, first: str, second: str
) -> None:
    source = BESIDE.format(first=first, second=second, address=server.address)
    assert run_script(alone, folder, source) == "3\n"


def test_the_type_checker_finds_types(alone: ClientAlone) -> None:
    assert (alone.packages / "expertmesh" / "py.typed").is_file()
    assert (alone.packages / "expertmesh" / "v1" / "generation_pb2.pyi").is_file()


@pytest.mark.parametrize(
    ("arguments", "port", "said"),
    [
        (["client", "--prompt", "x", "--max-tokens", "3", "--json"], "grpc", '"completion_tokens": 3'),
        (["health"], "grpc", "ready"),
        (["top", "--once"], "control", "sequences  0 running"),
        (["experts", "list"], "control", "layer  expert"),
        (["scale", "--workers", "1"], "control", "1 -> 1 workers"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_from_afar(
    alone: ClientAlone, folder: Path, server: Server, arguments: list[str], port: str, said: str
) -> None:
    at = 2 if arguments[0] == "experts" else 1
    arguments = [*arguments[:at], server.address_of(port), *arguments[at:]]
    done = run(alone.command, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_top_for_programs(alone: ClientAlone, folder: Path, server: Server) -> None:
    done = run(alone.command, "top", server.address_of("control"), "--once", "--json", folder=folder)
    assert len(json.loads(done.stdout)["workers"]) == 1


def test_a_command_of_the_server_says_what_to_install(alone: ClientAlone, folder: Path) -> None:
    done = run(alone.command, "serve", "checkpoint", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line == "expertmesh serve: error: `serve` comes with the server: pip install expertmesh"


def test_help_lists_what_there_is(alone: ClientAlone, folder: Path) -> None:
    shown = run(alone.command, "--help", folder=folder).stdout
    assert re.findall(r"^  (\w+)  ", shown, re.MULTILINE) == [
        "client",
        "health",
        "top",
        "scale",
        "experts",
        "completion",
    ]
    with_the_server = "serve, generate, demo, head, join, leave, doctor, keys, bench, sweep, probe"
    assert f"with the server (pip install expertmesh): {with_the_server}" in shown


def test_completion_knows_what_there_is(alone: ClientAlone, folder: Path) -> None:
    assert "expertmesh" in run(alone.command, "completion", "bash", folder=folder).stdout


def test_the_version_is_the_wheels(alone: ClientAlone, folder: Path) -> None:
    assert run(alone.command, "--version", folder=folder).stdout.strip() == alone.wheel.name.split("-")[1]
    assert metadata.version("expertmesh") == metadata.version("expertmesh-client")
