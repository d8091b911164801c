"""Configs as their authors publish them: every one is read, and has as many parameters as they say.

Numbers of parameters: the models' own cards and papers, in billions. A tied head counts once.
"""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_model.families import HUGGING_FACE, family_of
from scripts.model_page import PUBLISHED, family_rows, read_published

SAID = {
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671,
    "ernie-4.5-21b-a3b": 21.8,
    "flexolmo-7x7b-1t": 33.3,
    "glm-4.5-air": 106.9,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "granite-3.1-3b-a800m": 3.3,
    "kimi-k2": 1026,
    "minimax-m2": 228.7,
    "mixtral-8x22b": 140.6,
    "mixtral-8x7b": 46.7,
    "moonlight-16b-a3b": 16.0,
    "olmoe-1b-7b": 6.92,
    "qwen1.5-moe-a2.7b": 14.3,
    "qwen3-235b-a22b": 235.1,
    "qwen3-30b-a3b": 30.5,
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(PUBLISHED.glob("*.json"))])
def test_a_published_config_is_read(name: str) -> None:
    config = read_published(PUBLISHED / f"{name}.json")
    num_params = family_of(config).num_params(config) / 1e9
    assert num_params == pytest.approx(SAID[name], rel=0.01)


def test_every_family_has_a_published_config() -> None:
    """But for model types that are the same network as another."""
    read = {read_published(path).family for path in PUBLISHED.glob("*.json")}
    assert read == set(HUGGING_FACE.values())


def test_the_page_has_the_classes_of_transformers() -> None:
    rows = [[cell.strip(" `") for cell in row.split("|")[1:3]] for row in list(family_rows())[2:]]
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | {"kimi_k2": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["deepseek_v3"]}
    assert dict(rows) == {model_type: known[model_type] for model_type in HUGGING_FACE}
