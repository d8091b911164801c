"""Products by tiles, with tiles in plain C on any machine, and with the processor's own where it has them:
sums to the bit, nothing written beside them, tiles released."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native import native_kernels
from tests.moe_model.kernels.native.test_native_linear import HERE

pytestmark = needs_native

FOLDER = Path(__file__).parent
SOURCES = Path(native_kernels.__file__).parent / "src"
COMPILER = shutil.which("cc")
FORMS = ["bf16", "q8", "q4"]
# Less than a tile or a block, one more, several of both with something left, more panels than a task has.
SHAPES = [(1, 1), (2, 17), (31, 16), (33, 47), (64, 64), (257, 100)]
# Inputs after which sums wait in memory.
LONG = (1100, 70)
ROWS_PER_TASK = 96


def _compiled(folder: Path, *options: str) -> Path:
    assert COMPILER is not None
    program = folder / "amx_check"
    flags = ["-O1", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", f"-I{SOURCES}", f"-I{FOLDER}"]
    sources = [*options, str(FOLDER / "amx_check.c"), str(SOURCES / "fp8.c"), "-o", str(program), "-lm"]
    subprocess.run([COMPILER, *flags, *sources], check=True, timeout=300)
    return program


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler (cc) for tiles in plain C")
    return _compiled(tmp_path_factory.mktemp("tiles"), '-DTILES="tiles_in_c.h"')


@pytest.fixture(scope="module")
def by_processor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "amx" not in HERE or COMPILER is None:
        pytest.skip("this processor has no tiles, or there is no C compiler (cc)")
    return _compiled(tmp_path_factory.mktemp("tiles"))


def _check(program: Path, form: str, num_in: int, num_out: int, *rows: int) -> None:
    arguments = [str(program), form, *map(str, (num_in, num_out, *rows))]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    panels = -(-num_out // 16)
    assert run.stdout == f"checked {sum(rows) * panels * 16} sums\n"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
def test_any_number_of_rows_gives_the_same_bits(in_c: Path, form: str, num_in: int, num_out: int) -> None:
    _check(in_c, form, num_in, num_out, *range(1, ROWS_PER_TASK + 1))


@pytest.mark.parametrize("form", FORMS)
def test_sums_that_wait_in_memory_lose_nothing(in_c: Path, form: str) -> None:
    _check(in_c, form, *LONG, 1, 16, 33, 64, 65, 96)


def test_the_processors_own_tiles_are_those_of_its_manual(by_processor: Path) -> None:
    for form, (num_in, num_out) in product(FORMS, [*SHAPES, LONG]):
        _check(by_processor, form, num_in, num_out, *range(1, ROWS_PER_TASK + 1))
