"""Results as files that other projects read: a file for each run of each cell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from moe_model.errors import ConfigError
from scaling.cell import Cell
from scaling.observation import Observation
from scaling.results import llm_d, vllm_bench
from scaling.results.summary import by_round
from scaling.store import Manifest, Results, write_whole

Writer = Callable[[Manifest, Cell, Observation], dict[str, Any]]
FORMS: dict[str, Writer] = {
    "llm-d": llm_d.report,
    "vllm": lambda manifest, cell, observation: vllm_bench.result(cell, observation),
}


def export(results: Results, form: str, out: Path | None = None) -> list[Path]:
    """Into the folder `out`, by default one of the form's name inside the results'. A run that failed has
    nothing to write. Raises ConfigError, OSError."""
    if form not in FORMS:
        raise ConfigError(f"no form {form!r}; there are {', '.join(FORMS)}")
    folder = out if out is not None else results.folder / form
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file; --out names a folder")
    documents = {
        f"{key}-round{number}.json": _encoded(FORMS[form](results.manifest, cell, observation))
        for key, cell in results.manifest.cells.items()
        for number, observation in sorted(by_round(results.of()[key]).items())
    }
    if not documents:
        raise ConfigError(f"{results.folder}: no run that did not fail, nothing to export")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in documents.items():
        write_whole(folder / name, data)
    return [folder / name for name in documents]


def _encoded(document: dict[str, Any]) -> bytes:
    # A number that is none becomes null: JSON has no other.
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
