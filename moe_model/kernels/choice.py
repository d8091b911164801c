"""Which kernels compute a model here."""

from typing import Literal

import torch

from moe_model.errors import ConfigError
from moe_model.kernels.base import Kernels
from moe_model.kernels.torch_kernels import TorchKernels

try:
    from moe_model.native.native_kernels import NativeKernels
except ImportError:
    # Installed without a C compiler: everything works, several times slower.
    HAS_NATIVE = False
else:
    HAS_NATIVE = True

KernelChoice = Literal["auto", "native", "torch"]


def choose_kernels(choice: KernelChoice, device: torch.device | str) -> Kernels:
    """`auto`: native on a CPU where they are built. Raises ConfigError for native ones that cannot be had."""
    is_cpu = torch.device(device).type == "cpu"
    if choice == "torch" or (choice == "auto" and not (is_cpu and HAS_NATIVE)):
        return TorchKernels()
    if not is_cpu:
        raise ConfigError(f"kernels: native ones are for CPUs, the device is {device}")
    if not HAS_NATIVE:
        raise ConfigError("kernels: native ones were not built; install again with a C compiler")
    return NativeKernels()
