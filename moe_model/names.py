"""The names that people choose from, for what a model computes in and with. Needs no torch."""

from typing import Literal, get_args

KernelChoice = Literal["auto", "native", "torch"]
DtypeName = Literal["float32", "bfloat16"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
# How matrices are kept. model: in the dtype of the rest; int8: with one scale for each output; q8 and q4: in
# blocks of 8 and 4 bits with one scale for 32 inputs.
WeightForm = Literal["model", "int8", "q8", "q4"]
WEIGHT_FORMS: tuple[WeightForm, ...] = get_args(WeightForm)
