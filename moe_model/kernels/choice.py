"""Which kernels compute a model here."""

import platform

import torch

from moe_model.errors import ConfigError
from moe_model.kernels.base import Kernels
from moe_model.kernels.same_bits import KernelKind, bits_of
from moe_model.kernels.step_program import StepProgram
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.dense import SharedModel
from moe_model.machine import usable_cores
from moe_model.names import InstructionChoice, WeightForm
from moe_model.names import KernelChoice as KernelChoice

try:
    from moe_model.kernels.native.native_kernels import NativeKernels, instruction_sets, is_right
except ImportError:
    # Installed without a C compiler: everything works, several times slower.
    HAS_NATIVE = False
else:
    HAS_NATIVE = True


def choose_kernels(
    choice: KernelChoice,
    device: torch.device | str,
    num_threads: int | None = None,
    instruction_set: InstructionChoice = "auto",
) -> Kernels:
    """`auto`: native on a CPU where they are built, with the best instruction set there is. `num_threads` is
    for native ones, None: all cores.

    Raises ConfigError for native ones, and for an instruction set, that cannot be had.
    """
    if not uses_native(choice, device):
        if instruction_set != "auto":
            raise ConfigError(
                f"instruction set {instruction_set}: torch's kernels compute on {device}, which have none"
            )
        return TorchKernels()
    if torch.device(device).type != "cpu":
        raise ConfigError(f"kernels: native ones are for CPUs, the device is {device}")
    if not HAS_NATIVE:
        raise ConfigError("kernels: native ones were not built; install again with a C compiler")
    if instruction_set == "auto":
        return NativeKernels(num_threads=num_threads)
    if instruction_set not in (there := instruction_sets()):
        raise ConfigError(f"instruction set {instruction_set}: {platform.node()} has only {', '.join(there)}")
    if not is_right(instruction_set):
        raise ConfigError(f"instruction set {instruction_set}: its kernels are wrong on {platform.node()}")
    return NativeKernels(instruction_set, num_threads)


def kind_of(kernels: Kernels, dtype: torch.dtype, form: WeightForm) -> KernelKind:
    """What experts of this dtype and form are computed with."""
    if HAS_NATIVE and isinstance(kernels, NativeKernels):
        name = kernels.instruction_set
        return KernelKind(name, bits_of(name, dtype, form), instruction_sets())
    return KernelKind(kernels.name, bits_of(kernels.name, dtype, form))


def step_program(kernels: Kernels, shared: SharedModel) -> StepProgram | None:
    """All layers of a model in one call; None where these kernels have no program for its parts: Python runs
    them one by one."""
    return kernels.program(shared) if HAS_NATIVE and isinstance(kernels, NativeKernels) else None


def uses_native(choice: KernelChoice, device: torch.device | str) -> bool:
    """Whether native kernels are what was chosen."""
    is_cpu = torch.device(device).type == "cpu"
    return choice == "native" or (choice == "auto" and is_cpu and HAS_NATIVE)


def set_torch_threads(choice: KernelChoice, device: torch.device | str, num_threads: int | None) -> None:
    """For the main thread of a process, and each of its threads that computes.

    Beside native kernels torch gets one: its helpers would spin on the cores that ours want, for what little
    is left to them.
    """
    if uses_native(choice, device):
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(num_threads or usable_cores().number)
