"""Each family from folders that transformers wrote, against transformers itself, in float32."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.remote_experts import RemoteExperts
from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import HAS_NATIVE, KernelChoice, choose_kernels
from tests.families.case import Case, balance_of, logits_of, say
from tests.families.cases import CASES
from tests.families.ours import CONFIG, NUM_TOKENS, Generated, generate, generate_over, imported
from tests.integration.ray_experts import running
from tests.native import needs_native

# Of the largest logit: what transformers' own ways of computing differ by is a third of it.
TOLERANCE = 1e-4
LOGPROB_TOLERANCE = 1e-3

SERVED = [(case.name, variant) for case in CASES.values() for variant in case.served]
VARIANTS = [(case.name, variant) for case in CASES.values() for variant in ("", *case.variants)]


@dataclass(frozen=True)
class Written:
    """A model of transformers and its folder, opened."""

    case: Case
    model: Any
    checkpoint: Checkpoint


@pytest.fixture(scope="module", params=SERVED, ids=str)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    name, variant = request.param
    case, folder = CASES[name], tmp_path_factory.mktemp(name)
    model = case.make_model(variant)
    return Written(case, model, Checkpoint.open(case.write(model, folder)))


def check_generated(model: Any, found: list[Generated]) -> None:
    """Tokens are greedy if each is the best one after those before it: one pass says it of all."""
    for each in found:
        assert len(each.tokens) == NUM_TOKENS
        said = say(model, each.ids)
        after_SV = said.logits_SV[len(each.prompt) - 1 :]
        assert each.tokens == after_SV.argmax(-1).tolist()
        expected = after_SV.log_softmax(-1)[range(NUM_TOKENS), each.tokens]
        assert np.abs(np.array(each.logprobs) - expected.numpy()).max() < LOGPROB_TOLERANCE
        assert np.array_equal(np.sort(each.routed_TLK), np.sort(said.routed_SLK.numpy()))


# Numbers of workers and of replicas.
FLEETS = ((1, 1), (2, 1), (3, 2), (5, 1))


@pytest.mark.parametrize(
    ("kernels", "fleets"),
    [
        pytest.param("native", FLEETS, marks=needs_native, id="native"),
        pytest.param("torch", FLEETS[2:3], id="torch"),
        pytest.param("torch", FLEETS, marks=pytest.mark.long, id="torch, all fleets"),
    ],
)
def test_the_engine_says_what_transformers_says(
    written: Written, kernels: KernelChoice, fleets: Sequence[tuple[int, int]]
) -> None:
    """Tokens, log probabilities, and the experts of each token in each layer; of any number of workers."""
    config = replace(CONFIG, kernels=kernels)
    if kernels == "torch":
        # Its last bits depend on how many rows are multiplied at once.
        config = replace(config, micro_batches=1)
    alone = generate(written.checkpoint, config)
    check_generated(written.model, alone)
    for num_workers, replicas in fleets:
        found = generate(written.checkpoint, config, num_workers, replicas)
        assert [each.tokens for each in found] == [each.tokens for each in alone], num_workers
        assert [each.logprobs for each in found] == [each.logprobs for each in alone], num_workers
        same = (np.array_equal(a.routed_TLK, b.routed_TLK) for a, b in zip(found, alone, strict=True))
        assert all(same), num_workers


def random_ids(case: Case) -> Tensor:
    return torch.randint(3, case.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_logits_are_those_of_transformers(name: str, variant: str, tmp_path: Path) -> None:
    """In both spellings of the config, in one file, and in many and imported, with either kernels; and the
    balance."""
    case = CASES[name]
    model = case.make_model(variant, seed=1)
    ids_BS = random_ids(case)
    expected_BSV, balance = logits_of(model, ids_BS), balance_of(model, ids_BS)
    choices: list[tuple[bool, KernelChoice]] = [(False, "torch"), (True, "native" if HAS_NATIVE else "torch")]
    for old, kernels in choices:
        folder = tmp_path / str(old)
        source = case.write(model, folder / "source", old=old, max_shard_size="1GB" if old else "40KB")
        assert old != (source / "model.safetensors.index.json").exists()
        checkpoint = Checkpoint.open(source) if old else imported(source, folder)
        ours = AssembledModel.from_checkpoint(checkpoint.path, kernels=choose_kernels(kernels, "cpu"))
        logits_BSV, our_balance = ours.forward(ids_BS)
        error = float((logits_BSV - expected_BSV).abs().max() / expected_BSV.abs().max())
        assert error < TOLERANCE
        assert (our_balance is None) == (balance is None)
        if our_balance is not None and balance is not None:
            assert abs(float(our_balance - balance)) < TOLERANCE * float(balance)


@pytest.mark.parametrize("name", CASES)
def test_padding_is_left_out(name: str, tmp_path: Path) -> None:
    """Of attention, and of the balance."""
    case = CASES[name]
    model = case.make_model()
    ids_BS = random_ids(case)
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, 25:] = 0
    expected = logits_of(model, ids_BS, mask_BS), balance_of(model, ids_BS, mask_BS)
    ours = AssembledModel.from_checkpoint(case.write(model, tmp_path))
    logits_BSV, balance = ours.forward(ids_BS, mask_BS)
    is_text_BS = mask_BS == 1
    error = (logits_BSV - expected[0])[is_text_BS].abs().max() / expected[0].abs().max()
    assert error < TOLERANCE
    if balance is not None and expected[1] is not None:
        assert abs(float(balance - expected[1])) < TOLERANCE * float(expected[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster.start_local()
    yield cluster
    cluster.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_killed_worker_costs_no_token(cluster: RayCluster, written: Written) -> None:
    """Two worker processes with half of the experts each; one is killed in the middle of all sequences."""
    with running(written.checkpoint, 2, namespace=written.case.name.replace("_", "-")) as ray:
        experts, pid = RemoteExperts(ray.pool, ray.supervisor, lambda: None), ray.pid(1)

        def kill(step: int) -> None:
            if step == 20:
                os.kill(pid, signal.SIGKILL)

        found = generate_over(written.checkpoint, CONFIG, experts, before_step=kill)
        check_generated(written.model, found)
        assert ray.worker(1).num_losses == 1
