"""Fixtures that several folders use."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moe_model import AssembledModel
from moe_model.checkpoint.importer import import_checkpoint
from moe_model.kernels.choice import choose_kernels
from moe_model.text.tokenizer import Tokenizer
from tests.examples import register_profiles
from tests.models import GOLDEN
from tests.native import KERNELS

Measured = Callable[..., None]

pytest_plugins = [
    "tests.coordinator.api.engine_kinds",
    "tests.in_parallel",
    "tests.integration.shared_cluster",
    "tests.time_per_folder",
]

# Small products gain nothing from more threads, and on a busy machine each waits for the slowest. Set before
# any test module computes what it expects: the number of threads shows in a float32 product's last bit.
torch.set_num_threads(1)

# A shell's background job ignores Ctrl-C, one under nohup the end of its terminal, and they hand that on; the
# processes that tests start and stop must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What the environment says of proxies is about another network than that of the tests, which is this machine:
# httpx, openai and urllib would send to a proxy what is for a port of 127.0.0.1. What our own commands make
# of these variables has tests of its own, which set them.
for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]

register_profiles()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """A small model in all of ModularForge's own file formats, and what ModularForge said about it."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden() -> Mapping[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="session")
def golden_facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    return facts


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model as a checkpoint of ours. Nobody writes to it."""
    dest = tmp_path_factory.mktemp("checkpoint") / "modularforge-tiny"
    import_checkpoint(GOLDEN / "assembled_model.pt", dest)
    return dest


@pytest.fixture(scope="session", params=KERNELS)
def golden_model(tiny_checkpoint: Path, request: pytest.FixtureRequest) -> AssembledModel:
    return AssembledModel.from_checkpoint(
        tiny_checkpoint, dtype=torch.float32, kernels=choose_kernels(request.param, "cpu")
    )


@pytest.fixture(scope="session")
def golden_tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes((GOLDEN / "tokenizer.json").read_bytes())


@pytest.fixture(autouse=True)
def _fixed_numbers() -> None:
    """A test that draws its own numbers draws the same ones in every run."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", metavar="FILE", help="append what scenarios measure, a JSON line each")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Keeps figures of a scenario, by name."""

    def keep(scenario: str, **figures: float) -> None:
        line = json.dumps({"scenario": scenario} | {name: round(value, 4) for name, value in figures.items()})
        print(line)
        path = request.config.getoption("--figures")
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    return keep
