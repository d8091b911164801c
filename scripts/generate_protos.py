"""Generates the gRPC code in client/ from protos/**/*.proto, or checks that what is committed is fresh.

A file keeps the name that it has below protos/, expertmesh/v1/generation.proto: it is the name under which
protobuf knows the file, so code that users generate from the same sources is the same to it as ours.

The generator wants an older protobuf than we run with, so it lives in a virtual environment of its own,
made on demand. Needs nothing but Python: `python scripts/generate_protos.py [--check]`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES, CODE = ROOT / "protos", ROOT / "client"
VENV = ROOT / ".venv-protos"
# Code of a newer generator refuses to load on the older protobuf releases that we support.
REQUIREMENTS = ("grpcio-tools==1.74.0", "grpcio==1.74.0", "protobuf==6.31.1")
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


class GeneratorError(Exception):
    """One line for the person at the terminal."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is stale")
    arguments = parser.parse_args()
    try:
        python = generator_python()
        if arguments.check:
            check(python)
        else:
            generate(python, CODE)
    except (GeneratorError, OSError) as error:
        print(f"generate_protos: {error}", file=sys.stderr)
        return 1
    return 0


def generator_python() -> Path:
    """The interpreter that has the generator; makes its environment when it is missing or outdated."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS) + "\n"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(VENV, clear=True, with_pip=True)
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS])
    stamp.write_text(wanted)
    return python


def generate(python: Path, destination: Path) -> None:
    """Writes the code of every .proto below `destination`, at the path the .proto has below protos/."""
    sources = [path.relative_to(SOURCES).as_posix() for path in sorted(SOURCES.rglob("*.proto"))]
    if not sources:
        raise GeneratorError(f"{SOURCES}: no .proto file")
    outputs = [f"--{kind}_out={destination}" for kind in ("python", "pyi", "grpc_python")]
    run([str(python), "-m", "grpc_tools.protoc", f"--proto_path={SOURCES}", *outputs, *sources])


def check(python: Path) -> None:
    """Compares the committed code, byte by byte, with what the generator writes now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(python, Path(folder))
        stale = stale_files(generated_files(Path(folder)), generated_files(CODE))
    if stale:
        raise GeneratorError(f"stale: {', '.join(stale)}; run python scripts/generate_protos.py")


def generated_files(root: Path) -> dict[str, bytes]:
    """Content of every generated file below `root`, by path from there."""
    found = (path for path in root.rglob("*_pb2*") if path.name.endswith(GENERATED))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def stale_files(fresh: dict[str, bytes], committed: dict[str, bytes]) -> list[str]:
    """Paths that differ, are missing, or belong to no .proto any more."""
    return sorted(path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path))


def run(command: list[str]) -> None:
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise GeneratorError(f"failed: {' '.join(command[:4])} …")


if __name__ == "__main__":
    sys.exit(main())
