"""The headline: the same tokens for any number of workers and replicas, alone or together."""

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.dispatch.dispatch import Dispatch
from expert_workers.remote_experts import RemoteExperts
from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.sampling.params import SamplingParams
from moe_model.versions.running_experts import RunningExperts
from tests.coordinator.engine.speculating import Counted, always_draft
from tests.integration.ray_experts import running
from tests.models import Collected, collect, drain, expected_tokens
from tests.native import KERNELS, needs_native

MATRIX = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)]
SLICED_MATRIX = [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2)]
# With processes, of which each takes seconds to start.
RAY_MATRIX = [
    (1, 1),
    (2, 2),
    pytest.param(3, 1, marks=pytest.mark.long),
    pytest.param(5, 2, marks=pytest.mark.long),
    pytest.param(7, 1, marks=pytest.mark.long),
]
NUM_REQUESTS = 16
CONFIG = EngineConfig(block_size=4, max_num_seqs=6, max_step_tokens=24)


def mixed_requests(vocab_size: int, max_seq_len: int) -> list[Request]:
    """Greedy and seeded, short and long, some past the window's end."""
    rng = random.Random(5)
    requests = []
    for index in range(NUM_REQUESTS):
        slides = index % 3 == 0
        length = rng.randint(1, max_seq_len + 6 if slides else max_seq_len // 2)
        greedy = SamplingParams(temperature=0)
        seeded = SamplingParams(0.9, top_k=rng.choice([0, 20]), top_p=rng.choice([1.0, 0.9]), seed=index)
        requests.append(
            Request(
                f"r{index}",
                tuple(rng.randrange(vocab_size) for _ in range(length)),
                greedy if index % 2 else seeded,
                StopRules(
                    rng.randint(4, 12),
                    context_overflow=ContextOverflow.SLIDE if slides else ContextOverflow.STOP,
                ),
            )
        )
    return requests


def run_together(engine: Engine, requests: Sequence[Request]) -> dict[str, list[int]]:
    for request in requests:
        engine.submit(request)
    results = drain(engine)
    engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    assert all(result.last is not None and result.last.error is None for result in results.values())
    return {request_id: result.token_ids for request_id, result in results.items()}


def run_alone(engine: Engine, requests: Sequence[Request]) -> dict[str, list[int]]:
    return {r.request_id: run_together(engine, [r])[r.request_id] for r in requests}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster.start_local()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def requests(checkpoint: Checkpoint) -> list[Request]:
    return mixed_requests(checkpoint.config.vocab_size, checkpoint.config.max_seq_len)


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint: Path, requests: list[Request]) -> dict[str, list[int]]:
    """From torch's kernels; what they and the native ones say is the same."""
    model = AssembledModel.from_checkpoint(
        tiny_checkpoint, dtype=torch.float32, kernels=choose_kernels("torch", "cpu")
    )
    return {request.request_id: expected_tokens(model, request) for request in requests}


@contextmanager
def ray_experts(checkpoint: Checkpoint, num_workers: int, replicas: int) -> Iterator[RunningExperts]:
    namespace = f"matrix-{num_workers}-{replicas}"
    with running(checkpoint, num_workers, replicas, namespace=namespace) as experts:
        yield RemoteExperts(experts.pool, experts.supervisor, lambda: None)


def check(
    checkpoint: Checkpoint, config: EngineConfig, experts: RunningExperts, oracle: dict[str, list[int]]
) -> None:
    engine = build_engine(checkpoint, config, experts)
    requests = mixed_requests(checkpoint.config.vocab_size, checkpoint.config.max_seq_len)
    assert run_together(engine, requests) == oracle
    assert run_alone(engine, requests[:4]) == {r.request_id: oracle[r.request_id] for r in requests[:4]}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("num_workers", "replicas"), [(0, 1), *MATRIX])
def test_workers_in_this_process_equal_the_oracle(
    checkpoint: Checkpoint,
    oracle: dict[str, list[int]],
    num_workers: int,
    replicas: int,
    kernels: KernelChoice,
) -> None:
    config = replace(CONFIG, kernels=kernels)
    workers = WorkersConfig(num_workers=num_workers, replicas=replicas, transport="in-process")
    with open_experts(checkpoint, config, workers) as experts:
        check(checkpoint, config, experts, oracle)


@pytest.fixture(scope="module", params=[2, 3])
def num_slices(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def in_slices(checkpoint: Checkpoint, requests: list[Request], num_slices: int) -> dict[str, list[int]]:
    """Tokens of experts in slices in one process, one part after the other: by torch's kernels."""
    config = replace(CONFIG, kernels="torch", expert_slices=num_slices)
    with open_experts(checkpoint, config, WorkersConfig(num_workers=0)) as experts:
        return run_together(build_engine(checkpoint, config, experts), requests)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("num_workers", "replicas"), SLICED_MATRIX)
def test_experts_in_slices_are_the_same_wherever_they_are(
    checkpoint: Checkpoint,
    in_slices: dict[str, list[int]],
    num_slices: int,
    num_workers: int,
    replicas: int,
    kernels: KernelChoice,
) -> None:
    config = replace(CONFIG, kernels=kernels, expert_slices=num_slices)
    workers = WorkersConfig(num_workers=num_workers, replicas=replicas, transport="in-process")
    with open_experts(checkpoint, config, workers) as experts:
        check(checkpoint, config, experts, in_slices)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("num_workers", "replicas"), RAY_MATRIX)
def test_ray_workers_equal_the_oracle(
    cluster: RayCluster,
    checkpoint: Checkpoint,
    oracle: dict[str, list[int]],
    num_workers: int,
    replicas: int,
) -> None:
    with ray_experts(checkpoint, num_workers, replicas) as experts:
        check(checkpoint, CONFIG, experts, oracle)


@pytest.mark.timeout(300)
def test_a_killed_worker_of_slices_costs_no_token(cluster: RayCluster, checkpoint: Checkpoint) -> None:
    """Each of two processes has one slice of every expert; one is killed in the middle of all sequences."""
    config = replace(CONFIG, expert_slices=2)
    requests = mixed_requests(checkpoint.config.vocab_size, checkpoint.config.max_seq_len)
    with open_experts(checkpoint, config, WorkersConfig(num_workers=0)) as local:
        expected = run_together(build_engine(checkpoint, config, local), requests)
    with running(checkpoint, 2, namespace="slices", num_slices=2) as ray:
        experts, pid = RemoteExperts(ray.pool, ray.supervisor, lambda: None, 2), ray.pid(1)
        engine = build_engine(checkpoint, config, experts)
        for request in requests:
            engine.submit(request)
        results: dict[str, Collected] = {}
        for _ in range(5):
            collect(engine.step(), results)
        os.kill(pid, signal.SIGKILL)
        finish(engine, results)
        assert {name: result.token_ids for name, result in results.items()} == expected
        assert ray.worker(1).num_losses == 1


@needs_native
@pytest.mark.timeout(300)
def test_a_killed_worker_of_split_experts_costs_no_token(
    cluster: RayCluster, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of two processes have every expert, and a part of its rows; one is killed as it gets some."""
    config = replace(CONFIG, max_num_seqs=64, max_step_tokens=1024)
    requests = [
        Request(f"r{index}", tuple(range(index, index + 24)), SamplingParams(temperature=0), StopRules(4))
        for index in range(40)
    ]
    with open_experts(checkpoint, config, WorkersConfig(num_workers=0)) as local:
        expected = run_together(build_engine(checkpoint, config, local), requests)
    num_pieces: list[int] = []
    split = Dispatch.split
    with running(checkpoint, 2, 2, namespace="pieces", splits_rows=True) as ray:
        experts, pid = RemoteExperts(ray.pool, ray.supervisor, lambda: None), ray.pid(1)

        def split_and_kill(self: Dispatch, sizes: Sequence[Sequence[int]]) -> None:
            num_pieces.append(max(map(len, sizes)))
            if len(num_pieces) == 2:
                os.kill(pid, signal.SIGKILL)
            split(self, sizes)

        monkeypatch.setattr(Dispatch, "split", split_and_kill)
        assert run_together(build_engine(checkpoint, config, experts), requests) == expected
        assert ray.worker(1).num_losses == 1
    assert num_pieces[:2] == [4, 4], "two for each holder"


def finish(engine: Engine, results: dict[str, Collected]) -> None:
    deadline = time.monotonic() + 120
    while engine.has_work:
        assert time.monotonic() < deadline
        collect(engine.step(), results)


@pytest.mark.timeout(300)
def test_a_worker_killed_while_drafting_costs_no_token(
    cluster: RayCluster, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two processes dies under a step that has drafts; the steps after it have some as well."""
    likely = SamplingParams(1.0, seed=1, logit_bias=((1, 30.0), (2, 29.0)))
    greedy = SamplingParams(temperature=0, logit_bias=likely.logit_bias)
    requests = [
        Request(f"r{index}", (1, 2, 1, 2, 1)[index:], sampling, StopRules(max_tokens=40, ignore_eos=True))
        for index, sampling in enumerate((likely, greedy, likely))
    ]
    with open_experts(checkpoint, CONFIG, WorkersConfig(num_workers=0)) as local:
        expected = run_together(build_engine(checkpoint, CONFIG, local), requests)
    always_draft(monkeypatch)
    drafted: list[int] = []
    run = ModelRunner.run
    with running(checkpoint, 2, namespace="drafts") as ray:
        experts, pid = RemoteExperts(ray.pool, ray.supervisor, lambda: None), ray.pid(1)

        def run_and_kill(self: ModelRunner, step: Step) -> StepResult:
            if step.num_drafted:
                drafted.append(step.num_drafted)
                if len(drafted) == 2:
                    os.kill(pid, signal.SIGKILL)
            return run(self, step)

        monkeypatch.setattr(ModelRunner, "run", run_and_kill)
        counted = Counted()
        engine = build_engine(checkpoint, replace(CONFIG, speculate=4), experts, counted)
        for request in requests:
            engine.submit(request)
        results: dict[str, Collected] = {}
        finish(engine, results)
        assert ray.worker(1).num_losses == 1
    assert {name: result.token_ids for name, result in results.items()} == expected
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    assert len(drafted) > 3, "it drafts again"
    assert 0 < counted.num_accepted < counted.num_drafted
