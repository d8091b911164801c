"""The names that people choose from, for what a model computes in and with. Needs no torch."""

from typing import Literal, get_args

KernelChoice = Literal["auto", "native", "torch"]
DtypeName = Literal["float32", "bfloat16"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
