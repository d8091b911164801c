"""The parameter files of `vllm bench sweep serve`: JSON, read as fields of cells.

A list of objects, or an object of named ones, each the options of one configuration of `vllm serve`
(`--serve-params`) or `vllm bench serve` (`--bench-params`); a key has `_` or `-` between its words, and
`_benchmark_name` names a configuration. Source: https://docs.vllm.ai/en/latest/benchmarking/sweeps/.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moe_model.errors import ConfigError
from moe_model.names import DTYPE_NAMES
from scaling.strict import load

_NAME = "_benchmark_name"
Fields = dict[str, Any]


def _only(value: Any) -> Callable[[Any], None]:
    """An option that may be there if it says what is done anyway."""

    def check(given: Any) -> None:
        if given != value or isinstance(given, bool) != isinstance(value, bool):
            raise ValueError(f"only {value!r} is possible here")

    return check


def _mebibytes(given: Any) -> int:
    if type(given) is not int or given < 1 << 20:
        raise ValueError("not a number of bytes of a MiB or more")
    return given >> 20


def _rate(given: Any) -> float | None:
    """`inf`, all at once, is what `max_concurrency` alone means here."""
    if given in ("inf", float("inf")):
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError("neither a number nor 'inf'")
    return float(given)


def _dtype(given: Any) -> str | None:
    if given == "auto":
        return None
    if given not in DTYPE_NAMES:
        raise ValueError(f"neither auto nor one of {', '.join(DTYPE_NAMES)}")
    return str(given)


def _same(given: Any) -> Any:
    return given


# Which field of a cell, and how its value is made; None: nothing is to be done. In each the words have `_`.
_Row = tuple[str, Callable[[Any], Any]]
SERVE: Mapping[str, _Row] = {
    "model": ("model", _same),
    "dtype": ("dtype", _dtype),
    "max_num_seqs": ("serve.max-batch", _same),
    "max_num_batched_tokens": ("serve.max-step-tokens", _same),
    "max_model_len": ("serve.max-context", _same),
    "enable_prefix_caching": ("serve.prefix-caching", _same),
    "kv_cache_memory_bytes": ("serve.kv-cache-mib", _mebibytes),
    "served_model_name": ("serve.model-name", _same),
    "tensor_parallel_size": ("", _only(1)),
    "pipeline_parallel_size": ("", _only(1)),
    "data_parallel_size": ("", _only(1)),
    "eplb_config.num_redundant_experts": ("serve.redundant-experts", _same),
}
BENCH: Mapping[str, _Row] = {
    "max_concurrency": ("load.concurrency", _same),
    "request_rate": ("load.rate", _rate),
    "num_prompts": ("load.num_requests", _same),
    "random_input_len": ("load.prompt_tokens", _same),
    "input_len": ("load.prompt_tokens", _same),
    "random_output_len": ("load.output_tokens", _same),
    "output_len": ("load.output_tokens", _same),
    "dataset_name": ("", _only("random")),
    "ignore_eos": ("", _only(True)),
    "temperature": ("", _only(0)),
    "burstiness": ("", _only(1)),
    "random_range_ratio": ("", _only(0)),
}


def is_parameters(found: Any) -> bool:
    """Whether a file that was read is one of these, and no experiment of ours."""
    if isinstance(found, list):
        return True
    return (
        isinstance(found, dict) and "name" not in found and all(isinstance(v, dict) for v in found.values())
    )


def read_parameters(path: Path, rows: Mapping[str, _Row]) -> list[Fields]:
    """What each configuration changes of a cell. Raises ConfigError that names file and key."""
    return parameters(load(path), rows, str(path))


def parameters(found: Any, rows: Mapping[str, _Row], name: str) -> list[Fields]:
    """Raises ConfigError."""
    if isinstance(found, dict):
        items = [(f"{name}: {key}", value) for key, value in found.items()]
    elif isinstance(found, list):
        items = [(f"{name}: {number}", value) for number, value in enumerate(found, 1)]
    else:
        raise ConfigError(f"{name}: neither a list of objects nor an object of them")
    if not items:
        raise ConfigError(f"{name}: has no configuration")
    return [_fields(value, rows, where) for where, value in items]


def _fields(given: Any, rows: Mapping[str, _Row], where: str) -> Fields:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: no object")
    found: Fields = {}
    for key, value in given.items():
        if key == _NAME:
            continue
        row = rows.get(key.replace("-", "_"))
        if row is None:
            raise ConfigError(f"{where}: {key} has no meaning here; known are {', '.join(rows)}")
        field, make = row
        try:
            made = make(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {key}: {error}") from None
        if field and made is not None:
            if field in found:
                raise ConfigError(f"{where}: {key}: said twice")
            found[field] = made
    return found
