"""Which kernels are chosen, and that they are built wherever they can be."""

import shutil

import pytest
import torch

from moe_model.errors import ConfigError
from moe_model.kernels.choice import HAS_NATIVE, KernelChoice, choose_kernels, kind_of
from moe_model.kernels.same_bits import KernelKind
from tests.native import needs_native


def test_the_c_kernels_are_built_where_there_is_a_compiler() -> None:
    assert HAS_NATIVE or shutil.which("cc") is None, "a compiler is here, and the kernels were not built"


@needs_native
def test_auto_is_native_on_a_cpu_and_torch_on_a_gpu() -> None:
    assert choose_kernels("auto", "cpu").name == "native"
    assert choose_kernels("auto", torch.device("cuda")).name == "torch"
    assert choose_kernels("torch", "cpu").name == "torch"


def test_native_kernels_are_for_cpus() -> None:
    with pytest.raises(ConfigError, match="kernels: native ones are for CPUs, the device is cuda"):
        choose_kernels("native", "cuda")


def test_without_them_auto_is_torch_and_native_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_model.kernels.choice.HAS_NATIVE", False)
    assert choose_kernels("auto", "cpu").name == "torch"
    with pytest.raises(ConfigError, match="install again with a C compiler"):
        choose_kernels("native", "cpu")


@needs_native
def test_an_instruction_set_that_is_asked_for_is_used_or_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = kind_of(choose_kernels("auto", "cpu", 1, "generic"), torch.float32, "model")
    assert (kind.name, kind.bits) == ("generic", "generic")
    monkeypatch.setattr("moe_model.kernels.choice.instruction_sets", lambda: ("avx2", "generic"))
    with pytest.raises(ConfigError, match=r"^instruction set avx512: .+ has only avx2, generic$"):
        choose_kernels("auto", "cpu", 1, "avx512")
    monkeypatch.setattr("moe_model.kernels.choice.is_right", lambda name: name == "generic")
    with pytest.raises(ConfigError, match=r"^instruction set avx2: its kernels are wrong on "):
        choose_kernels("auto", "cpu", 1, "avx2")


@pytest.mark.parametrize(("choice", "device"), [("torch", "cpu"), ("torch", "cuda"), ("auto", "cuda")])
def test_torch_has_no_instruction_set_to_choose(choice: KernelChoice, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"^instruction set avx2: torch's kernels compute on {device}, "):
        choose_kernels(choice, device, 1, "avx2")
    kind = kind_of(choose_kernels("torch", "cpu"), torch.float32, "model")
    assert kind == KernelKind("torch", "torch")
