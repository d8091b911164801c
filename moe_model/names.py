"""The names that people choose from, for what a model computes in and with. Needs no torch."""

from typing import Literal

KernelChoice = Literal["auto", "native", "torch"]
DTYPE_NAMES = ("float32", "bfloat16")
