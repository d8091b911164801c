"""The kernels for ARM where there is no ARM: built by a cross compiler, run in an emulator of processors.

`make test-arm` runs these. Emulated is what a processor computes: nothing here says how long it takes.
"""

import ast
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
KERNELS = ROOT / "moe_model/kernels/native/src"
FRAMES = ROOT / "expert_workers/transports"
EXTENSIONS = (KERNELS, FRAMES / "stream/native/src", ROOT / "expert_workers/dispatch/native/src")
SETS = ("neon", "dotprod", "i8mm")
# Processors of the emulator, and what each has.
PROCESSORS = {"cortex-a53": ("neon",), "neoverse-n1": ("neon", "dotprod"), "max": SETS}

# An emulator takes its time, most of all beside others.
pytestmark = [pytest.mark.arm, pytest.mark.timeout(1200)]


def _tool(*names: str) -> str:
    """The first that is here."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            f"{names[0]} is missing, which building and running for ARM takes: on Debian and Ubuntu"
            " apt-get install gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"
        )
    return found


def _flags() -> list[str]:
    """What setup.py gives a compiler."""
    nodes = ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
    (found,) = (n.value for n in nodes if isinstance(n, ast.keyword) and n.arg == "extra_compile_args")
    flags: list[str] = ast.literal_eval(found)
    return [*flags, "-Wall", "-Wextra", "-Werror"]


def _build(compiler: str, sources: Sequence[Path], out: Path, *more: str) -> Path:
    include = [f"-I{folder}" for folder in (KERNELS, FRAMES)]
    command = [compiler, *_flags(), *include, *map(str, sources), *more, "-o", str(out)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


def _build_driver(compiler: str, folder: Path) -> Path:
    """Of all kernels but what Python sees of them."""
    sources = [path for path in sorted(KERNELS.glob("*.c")) if not path.name.startswith("module")]
    driver = Path(__file__).with_name("instruction_sets.c")
    return _build(compiler, [driver, *sources], folder / "instruction_sets", "-static", "-lm")


def _run(command: Sequence[str]) -> dict[str, list[str]]:
    """The lines of each set."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wrong = [line for line in ran.stdout.splitlines() if line.endswith("WRONG")]
    assert wrong == []
    assert ran.returncode == 0, ran.stderr
    lines: dict[str, list[str]] = {}
    for line in ran.stdout.splitlines():
        name, _, case = line.partition(": ")
        lines.setdefault(name, []).append(case)
    return lines


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs it; the processor's name is to follow."""
    folder = tmp_path_factory.mktemp("arm")
    emulator = _tool("qemu-aarch64-static", "qemu-aarch64")
    return [emulator, str(_build_driver(_tool("aarch64-linux-gnu-gcc"), folder)), "-cpu"]


@pytest.fixture(scope="module")
def on_max(driver: list[str]) -> dict[str, list[str]]:
    emulator, program, option = driver
    return _run([emulator, option, "max", program, *SETS])


@pytest.mark.parametrize("processor", [name for name in PROCESSORS if name != "max"])
def test_a_processor_runs_what_it_has(
    driver: list[str], on_max: dict[str, list[str]], processor: str
) -> None:
    """Sets are found by what the processor says."""
    emulator, program, option = driver
    lines = _run([emulator, option, processor, program, *SETS])
    assert lines == {name: on_max[name] for name in PROCESSORS[processor]}


def test_each_set_gives_the_same_bits(on_max: dict[str, list[str]]) -> None:
    """Each is as plain C, on odd shapes, a row alone and among others: the driver says where one is not."""
    assert tuple(on_max) == SETS
    assert len(on_max["neon"]) > 900
    assert on_max["dotprod"] == on_max["neon"]
    assert on_max["i8mm"] == on_max["neon"]


def _as_on_x86(lines: list[str]) -> list[str]:
    """Without products of FP8, which on ARM are those of plain C."""
    return [line for line in lines if " product of fp8, " not in line]


def test_bits_are_those_of_avx2(on_max: dict[str, list[str]], tmp_path: Path) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("this is no x86-64 to be compared with")
    here = _run([str(_build_driver(_tool("gcc"), tmp_path)), "avx2"])
    if not here:
        pytest.skip("this processor has no AVX2 to be compared with")
    assert _as_on_x86(here["avx2"]) == _as_on_x86(on_max["neon"])


@pytest.mark.parametrize("folder", EXTENSIONS, ids=lambda folder: folder.parents[1].name)
def test_an_extension_is_built_for_arm(folder: Path, tmp_path: Path) -> None:
    headers = sysconfig.get_paths()["include"]
    _build(
        _tool("aarch64-linux-gnu-gcc"),
        sorted(folder.glob("*.c")),
        tmp_path / "extension.so",
        *("-shared", "-fPIC", f"-I{folder}", f"-I{headers}"),
    )
