"""Experts are added to layers whose routers have more of each expert than a row of weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from moe_model.families.gpt_oss.config import FULL, SLIDING, GptOssConfig
from moe_model.families.minimax_m2.config import MiniMaxConfig
from moe_model.kernels.choice import KernelChoice
from tests.coordinator.engine.versions.test_exchange import expected, refused, requests, run
from tests.coordinator.exchanges import CONFIG, Changing, module_of, rewritten, row_file, tokens_of
from tests.models import write_checkpoint
from tests.native import KERNELS

# Their routers have a bias, or a correction of the choice, beside the weights.
ROUTERS = {
    "bias": replace(
        CONFIG, family="gpt_oss", own=GptOssConfig(sliding_window=5, layer_types=(SLIDING, FULL))
    ),
    "correction": replace(CONFIG, family="minimax_m2", own=MiniMaxConfig()),
}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("part", ROUTERS)
def test_a_router_of_more_than_weights_takes_all_of_a_row(
    kernels: KernelChoice, part: str, tmp_path: Path
) -> None:
    paths = [write_checkpoint(tmp_path / str(seed), ROUTERS[part], seed) for seed in (0, 9)]
    changing = Changing.open(paths[0], kernels)
    file, row = module_of(paths[1], 1, 3), row_file(tmp_path / "row", 1, part)
    too_few, too_many = row_file(tmp_path / "few", 1), row_file(tmp_path / "many", 1, "bias", "correction")
    refused(changing, lambda e: e.add(1, file, None, too_few), "router_path", f"'router.{part}' is missing")
    refused(changing, lambda e: e.add(1, file, None, too_many), "router_path", "unknown tensor")

    def change() -> None:
        for layer in range(CONFIG.n_layers):
            changing.exchange.add(layer, file, None, row)
            changing.exchange.remove(layer, 2)

    tokens = run(changing, change)
    added = {(layer, 3): Path(file) for layer in range(CONFIG.n_layers)}
    rows: list[list[int | Path]] = [[0, 1, 3, Path(row)]] * CONFIG.n_layers
    after = rewritten(paths[0], tmp_path / "after", added, rows)
    assert tokens == expected(changing, paths[0], after)
    assert tokens["before0"] != tokens_of(after, changing.config, requests("before"))["before0"]
