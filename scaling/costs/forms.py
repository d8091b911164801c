"""How many bytes a weight takes in each stored form, and a value of the cache."""

from moe_model.errors import ConfigError

# Blocks of 32 inputs have one scale: of two bytes for q8 and q4 (moe_model/kernels/quantise.py), of one for
# mxfp4 (OCP Microscaling Formats 1.0, section 5.2); fp8 has a float for each 128 by 128.
BYTES_PER_WEIGHT = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "q8": 1 + 2 / 32,
    "q4": 0.5 + 2 / 32,
    "mxfp4": 0.5 + 1 / 32,
    "fp8": 1.0,
}


def weight_bytes(form: str) -> float:
    """Raises ConfigError for a form that there is not."""
    if form not in BYTES_PER_WEIGHT:
        raise ConfigError(f"form {form!r}: there are {', '.join(BYTES_PER_WEIGHT)}")
    return BYTES_PER_WEIGHT[form]


def cache_value_bytes(shared_form: str) -> float:
    """The cache is in the model's dtype; where only a rounded form is known, bfloat16 is assumed."""
    return 4.0 if shared_form == "float32" else 2.0
