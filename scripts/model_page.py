"""Writes the tables of docs/models.md from the families and from published configs; or checks them.

`python scripts/model_page.py [--check]`, in the environment that has the families. The text around the
tables is written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from moe_model.config import ModelConfig  # noqa: E402
from moe_model.families import HUGGING_FACE, family_named, family_of  # noqa: E402
from moe_model.families.hugging_face import ConfigKeys  # noqa: E402
from moe_model.footprint import Footprint, footprint  # noqa: E402
from moe_model.names import STORED_FORMS  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
PUBLISHED = ROOT / "benchmarks" / "published"
CACHE_TOKENS = 32768
NUM_WORKERS = (2, 3, 8)
_GIB = 1 << 30
# Of model types whose class has another name than that of their family.
_ARCHITECTURES = {"granitemoeshared": "GraniteMoeSharedForCausalLM"}
_WRITTEN = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def read_published(path: Path) -> ModelConfig:
    """As a folder's config.json is read. Raises ConfigError naming the key."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data.pop("quantization_config", None)
    keys = ConfigKeys(data)
    family = family_named(HUGGING_FACE[data["model_type"]])
    assert family.hugging_face is not None
    config = family.hugging_face.read_config(keys)
    keys.finish()
    family.check(config)
    return config


def family_rows() -> Iterator[str]:
    yield "| `model_type` | class of transformers | family |"
    yield "|---|---|---|"
    for model_type, name in HUGGING_FACE.items():
        architecture = _ARCHITECTURES.get(model_type, family_named(name).architecture)
        yield f"| `{model_type}` | `{architecture}` | `{name}` |"


def memory_rows() -> Iterator[str]:
    workers = " | ".join(f"each of {number} workers" for number in NUM_WORKERS)
    yield f"| model | parameters | coordinator | one expert | all experts | {workers} |"
    yield "|---|---|---|---|---|" + "---|" * len(NUM_WORKERS)
    for path in sorted(PUBLISHED.glob("*.json")):
        config = read_published(path)
        yield _memory_row(path.stem, config, footprint(config, torch.bfloat16))


def stored_rows() -> Iterator[str]:
    """Of models that are published in a form that experts can be kept in."""
    workers = " | ".join(f"each of {number} workers" for number in NUM_WORKERS)
    yield f"| model | `--expert-dtype` | one expert | all experts | {workers} |"
    yield "|---|---|---|---|" + "---|" * len(NUM_WORKERS)
    for path in sorted(PUBLISHED.glob("*.json")):
        quantised = json.loads(path.read_text(encoding="utf-8")).get("quantization_config", {})
        for form in STORED_FORMS:
            if quantised.get("quant_method") == form:
                found = footprint(read_published(path), torch.bfloat16, form)
                yield f"| {path.stem} | `{form}` | {' | '.join(_of_experts(found))} |"


def _memory_row(name: str, config: ModelConfig, found: Footprint) -> str:
    cells = [
        name,
        f"{family_of(config).num_params(config) / 1e9:.1f} B",
        _gib(found.coordinator_bytes(min(CACHE_TOKENS, config.max_seq_len))),
        *_of_experts(found),
    ]
    return f"| {' | '.join(cells)} |"


def _of_experts(found: Footprint) -> list[str]:
    of_workers = [_gib(found.worker_bytes(number)) for number in NUM_WORKERS]
    return [f"{found.expert_bytes / (1 << 20):.0f} MiB", _gib(found.experts_bytes), *of_workers]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def page(text: str) -> str:
    """The page with its tables written anew."""
    tables = {"families": family_rows(), "memory": memory_rows(), "stored": stored_rows()}

    def written(match: re.Match[str]) -> str:
        return match[1] + "\n".join(tables[match[2]]) + "\n" + match[3]

    return _WRITTEN.sub(written, text)


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    new = page(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            sys.stderr.write(f"{PAGE.name} is stale: run `make pages`\n")
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
