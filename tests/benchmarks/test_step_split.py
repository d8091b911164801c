"""A timed engine draws what the server's would, and its parts make up the step."""

from pathlib import Path

import pytest

from benchmarks.engine import Load, measure
from benchmarks.step_split import PARTS, Split, timed_engine
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.experts import open_experts
from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.names import KernelChoice
from tests.models import drain, expected_tokens, make_request, write_checkpoint
from tests.native import needs_native


@pytest.mark.parametrize("kernels", ["torch", pytest.param("native", marks=needs_native)])
def test_parts_make_up_the_step_and_tokens_are_the_oracles(kernels: KernelChoice, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "tiny"))
    reference = AssembledModel.from_checkpoint(checkpoint.path)
    config = EngineConfig(block_size=4, kv_cache_bytes=1 << 20, kernels=kernels)
    for num_workers in (0, 2):
        split = Split()
        workers = WorkersConfig(num_workers=num_workers, transport="in-process")
        with open_experts(checkpoint, config, workers, [split]) as experts:
            engine = timed_engine(checkpoint, config, experts, split, is_remote=num_workers > 0)
            request = make_request("r", (1, 2, 3), 6)
            engine.submit(request)
            assert drain(engine)["r"].token_ids == expected_tokens(reference, request)
            split.reset()
            with split.timing("step"):
                measure(engine, checkpoint.config.vocab_size, 2, Load(4, 5))
            shares = split.shares()
            assert set(shares) == set(PARTS)
            assert abs(sum(shares.values()) - split.seconds["step"]) < 1e-6
            used = {part for part, seconds in shares.items() if seconds > 0}
            expected = {"attention", "routing", "experts", "head", "sampling", "scheduler"}
            assert expected <= used
            assert ("serialisation" in used) == (num_workers > 0)


def test_what_workers_compute_while_rows_are_sent_is_not_counted_twice() -> None:
    split = Split()
    split.seconds |= {"step": 10.0, "serialisation": 3.0, "waiting": 2.0, "combine": 0.5, "experts": 4.0}
    shares = split.shares()
    assert shares["experts"] == 1.5
    assert shares["wire"] == 0.0
    assert sum(shares.values()) == 10.0
