"""The names that people choose from, for what a model computes in and with. Needs no torch."""

from typing import Literal, get_args

KernelChoice = Literal["auto", "native", "torch"]
# What the C kernels may be computed with, from the best to the one that runs everywhere.
InstructionSet = Literal[
    "amx", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "i8mm", "dotprod", "neon", "generic"
]
INSTRUCTION_SETS: tuple[InstructionSet, ...] = get_args(InstructionSet)
InstructionChoice = Literal["auto", InstructionSet]
DtypeName = Literal["float32", "bfloat16"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
# How matrices are kept. model: in the dtype of the rest; int8: with one scale for each output; q8 and q4: in
# blocks of 8 and 4 bits with one scale for 32 inputs.
RoundedForm = Literal["model", "int8", "q8", "q4"]
ROUNDED_FORMS: tuple[RoundedForm, ...] = get_args(RoundedForm)
# As a checkpoint stores them, if it does: 4 bits with one power of two for 32 inputs; 8 bits, of e4m3, with
# one scale for each block of outputs and 128 inputs.
StoredForm = Literal["mxfp4", "fp8"]
STORED_FORMS: tuple[StoredForm, ...] = get_args(StoredForm)
WeightForm = Literal[RoundedForm, StoredForm]
WEIGHT_FORMS: tuple[WeightForm, ...] = get_args(WeightForm)


def stored_form(form: WeightForm) -> StoredForm | None:
    """None for one that any weights can be rounded to."""
    return form if form == "mxfp4" or form == "fp8" else None
