"""`expertmesh inspect`: what a checkpoint is, for people or as one JSON object."""

import argparse
import json
import sys
from typing import Any

from coordinator.commands.amounts import format_bytes, format_count
from coordinator.commands.inspect_arguments import InspectArguments
from coordinator.commands.progress import bytes_line, progress_line
from expertmesh.commands.options import options_of
from moe_model.checkpoint.manifest import DTYPES, SHARED, TOKENIZER, dtype_name
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.footprint import PROCESS_BYTES, footprint
from moe_model.names import ROUNDED_FORMS, DtypeName, StoredForm, WeightForm
from moe_model.remote.given import given_folder

_NUMS_WORKERS = (1, 2, 3, 4, 8)


def run(args: argparse.Namespace) -> int:
    given = options_of(args, InspectArguments)
    with bytes_line(sys.stderr, "downloading") as on_bytes:
        folder = given_folder(given.checkpoint, on_bytes)
    checkpoint = Checkpoint.open(folder)
    described = describe(checkpoint)
    if given.verify:
        described |= {"verified": True, "num_verified_sums": _verify(checkpoint)}
    if given.json:
        print(json.dumps(described))
    else:
        _print(described)
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that is shown, as plain JSON."""
    family = family_of(checkpoint.config)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "family": checkpoint.config.family,
        "architecture": family.architecture,
        "model": checkpoint.config.to_dict(),
        "dtype": dtype_name(checkpoint.dtype),
        "quantisation": checkpoint.quantisation,
        "num_parameters": family.num_params(checkpoint.config),
        "num_active_parameters_per_token": family.num_active_params_per_token(checkpoint.config),
        "generation": checkpoint.generation.to_dict(),
        "tokenizer": TOKENIZER if TOKENIZER in checkpoint.files else None,
        "memory": {
            "process_bytes": PROCESS_BYTES,
            "served_as": [_memory(checkpoint.config, *each) for each in _served_as(checkpoint.expert_form)],
        },
        "fingerprint": checkpoint.fingerprint,
        "num_bytes": sum(entry.size for entry in checkpoint.files.values()),
        "notes": list(checkpoint.notes),
        "files": {
            name: {"size": entry.size, "sha256": entry.sha256}
            for name, entry in sorted(checkpoint.files.items())
        },
    }


def _served_as(stored: StoredForm | None) -> list[tuple[DtypeName, WeightForm]]:
    """As `serve` takes --dtype and --expert-dtype."""
    forms: list[WeightForm] = [*ROUNDED_FORMS, *([] if stored is None else [stored])]
    return [("float32", "model"), *(("bfloat16", form) for form in forms)]


def _memory(config: ModelConfig, dtype: DtypeName, form: WeightForm) -> dict[str, Any]:
    """What each process keeps, beside `process_bytes`; of the coordinator also what its cache holds."""
    found = footprint(config, DTYPES[dtype], form)
    return {
        "dtype": dtype,
        "expert_dtype": form,
        "shared_bytes": found.shared_bytes,
        "expert_bytes": found.expert_bytes,
        "num_experts": found.num_modules,
        "experts_bytes": found.experts_bytes,
        "cache_bytes_per_token": found.cache_bytes_per_token,
        "worker_bytes": {n: found.worker_bytes(n) - PROCESS_BYTES for n in _NUMS_WORKERS},
    }


def _verify(checkpoint: Checkpoint) -> int:
    done = 0

    def count(name: str) -> None:
        nonlocal done
        done += 1
        progress(done, len(checkpoint.files))

    with progress_line(sys.stderr, "verifying") as progress:
        return checkpoint.verify(count)


def _print(described: dict[str, Any]) -> None:
    total, active = described["num_parameters"], described["num_active_parameters_per_token"]
    print(f"{described['path']}: {described['architecture']}")
    counts = [f"{number:,} ({format_count(number)})" for number in (total, active)]
    print(f"  parameters  {counts[0]}, {counts[1]} active per token")
    print(f"  format      {described['format']}, family {described['family']}")
    quantised = described["quantisation"]
    print(f"  dtype       {described['dtype']}{f', stored as {quantised}' if quantised else ''}")
    print(f"  tokenizer   {described['tokenizer'] or 'none'}")
    print(f"  model       {_pairs(described['model'])}")
    print(f"  generation  {_pairs(described['generation'])}")
    _print_memory(described["memory"])
    for note in described["notes"]:
        print(f"  note        {note}")
    print(f"  fingerprint {described['fingerprint']}")
    print(f"  files       {len(described['files'])}, {format_bytes(described['num_bytes'])}")
    _print_files(described["files"])
    if "verified" in described:
        print(f"  verified    {_verified(described)}")


def _print_memory(memory: dict[str, Any]) -> None:
    """A token of its cache is the coordinator's too."""
    libraries = format_bytes(memory["process_bytes"])
    print(f"  memory      of weights in each process, which needs {libraries} more for its libraries")
    head = ["--dtype", "--expert-dtype", "coordinator", "cache a token", "an expert"]
    rows = [head + [f"worker of {n}" for n in _NUMS_WORKERS]]
    for each in memory["served_as"]:
        sizes = [each["shared_bytes"], each["cache_bytes_per_token"], each["expert_bytes"]]
        sizes += each["worker_bytes"].values()
        rows.append([each["dtype"], each["expert_dtype"], *map(format_bytes, sizes)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("    " + "  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))


def _print_files(files: dict[str, dict[str, Any]]) -> None:
    single = [name for name in (SHARED, TOKENIZER) if name in files]
    width = max(len(name) for name in files)
    for name in [*single, *(name for name in files if name not in single)]:
        print(f"    {name:<{width}}  {files[name]['size']:>14,}  {(files[name]['sha256'] or '-')[:16]}")


def _verified(described: dict[str, Any]) -> str:
    num_sums, num_files = described["num_verified_sums"], len(described["files"])
    if num_sums == 0:
        return "every tensor; there is no sum that a file had to have"
    sums = "every sum" if num_sums == num_files else f"the sums of {num_sums} of {num_files} files"
    return f"{sums} and every tensor"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
