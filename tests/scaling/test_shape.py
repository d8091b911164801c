"""Shapes agree with what the families count, and with what a checkpoint's files hold."""

from pathlib import Path

import pytest

from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import ConfigError
from moe_model.families import family_of
from scaling.shape import config_of, shape_of

PUBLISHED = sorted(Path("benchmarks/published").glob("*.json"))
DEMO = Path("demo/checkpoint")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_as_many_parameters_as_the_family_counts(path: Path) -> None:
    shape, config = shape_of(path), config_of(path)
    assert shape.total_params == pytest.approx(family_of(config).num_params(config), rel=1e-3)
    active = shape.shared_params + len(shape.moe_layers) * shape.top_k * shape.expert_params
    counted = family_of(config).num_active_params_per_token(config)
    # Authors count an embedding that is only looked up, or do not.
    assert active <= counted * 1.001 <= (active + shape.head_params) * 1.002


def test_a_checkpoint_has_a_shape() -> None:
    shape, config = shape_of(DEMO), Checkpoint.open(DEMO).config
    assert (shape.n_experts, shape.top_k, shape.d_model) == (config.n_experts, config.top_k, config.d_model)
    assert sum(out * into for out, into in shape.expert_matrices) <= shape.expert_params


def test_only_the_first_layers() -> None:
    path = Path("benchmarks/published/olmoe-1b-7b.json")
    assert shape_of(path, 3).n_layers == 3
    with pytest.raises(ConfigError, match="layers: of a config"):
        shape_of(DEMO, 1)
    with pytest.raises(ConfigError, match="neither a checkpoint"):
        shape_of(Path("absent"))
