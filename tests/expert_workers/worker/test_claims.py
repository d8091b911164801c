"""Who a worker answers: one client at a time today, and any rule that says otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from expert_workers.transports.stream.serve_loop import HAS_LOOP
from expert_workers.wire import ExpertReply
from expert_workers.worker.claims import Claim, ClaimRequest, Claims, OneClient
from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.errors import FencedError, ReplyError
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.versions.expert_versions import checkpoint_modules
from tests.expert_workers.fakes import FakeSource, make_config, make_spec
from tests.expert_workers.stream_fakes import StreamFleet, make_call, outcomes, running
from tests.native import KERNELS

CONFIG = make_config()


def claims() -> Claims:
    return Claims("worker 3")


def test_a_worker_that_nobody_has_claimed_answers_epoch_0() -> None:
    found = claims()
    found.check(0)
    assert (found.epochs, found.newest) == ((0,), 0)
    with pytest.raises(ReplyError, match="worker 3: epoch 1 has not been claimed"):
        found.check(1)
    found.heard("anybody")


def test_a_client_that_lives_keeps_the_worker_unless_it_is_taken_by_force() -> None:
    found = claims()
    found.claim("a", 1)
    with pytest.raises(FencedError, match=r"^worker 3: is in use by a: stop that one first, .*--take-over"):
        found.claim("b", 2)
    found.check(1)
    found.claim("b", 2, by_force=True)
    assert found.epochs == (2,)
    with pytest.raises(FencedError, match=r"^worker 3: epoch 1 is over: a coordinator of epoch 2 has"):
        found.check(1)
    with pytest.raises(FencedError, match="worker 3: b has taken it over"):
        found.heard("a")
    with pytest.raises(FencedError, match="epoch 1 is over"):
        found.claim("a", 1, by_force=True)


def test_a_client_may_claim_again_what_is_its_own() -> None:
    found = claims()
    for epoch in (1, 1, 4):
        found.claim("a", epoch)
    assert found.epochs == (4,)
    with pytest.raises(FencedError, match="epoch 3 is over"):
        found.claim("a", 3)


@pytest.mark.parametrize(
    ("request_at", "is_linked", "is_alive"), [(4.9, True, True), (5.0, True, False), (1.0, False, False)]
)
def test_a_client_lives_while_it_has_links_and_speaks(
    request_at: float, is_linked: bool, is_alive: bool
) -> None:
    held = [Claim("a", 1, heard=0.0)]
    request = ClaimRequest("b", 2, by_force=False, is_linked=is_linked, now=request_at)
    if is_alive:
        with pytest.raises(FencedError, match="is in use by a"):
            OneClient(lease_seconds=5.0).after(held, request)
    else:
        assert OneClient(lease_seconds=5.0).after(held, request) == (Claim("b", 2, request_at),)


def test_a_client_that_speaks_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 104.0, 108.0, 109.0])
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("expert_workers.worker.claims.time", clock)
    found = Claims("worker 3", OneClient(lease_seconds=5.0))
    found.claim("a", 1)
    found.heard("a")
    with pytest.raises(FencedError, match="is in use by a"):
        found.claim("b", 2)
    found.claim("b", 2)
    assert found.epochs == (2,)


@dataclass(frozen=True)
class EveryClient:
    """A ClaimRule for a pool of several coordinators: each has a claim of its own."""

    def after(self, claims: Sequence[Claim], request: ClaimRequest) -> tuple[Claim, ...]:
        others = [claim for claim in claims if claim.client not in ("", request.client)]
        return (*others, Claim(request.client, request.epoch, request.now))


@pytest.mark.parametrize("name", KERNELS)
def test_under_another_rule_several_clients_are_answered_in_c_and_in_python(name: KernelChoice) -> None:
    """Nothing else of a worker says how many there may be."""
    kernels = choose_kernels(name, "cpu")
    source = FakeSource(CONFIG, torch.float32, kernels)
    worker = ExpertWorker(make_spec(0, kernels), source, EveryClient())
    worker.load(checkpoint_modules([(0, 0)]))
    call = make_call(1, width=CONFIG.d_model)
    with running({0: worker}) as machine:
        worker.claim("a", 1)
        worker.claim("b", 2)
        links = {epoch: StreamFleet(machine).open(0) for epoch in (1, 2, 3)}
        answers = outcomes([link.send(call._replace(epoch=epoch)) for epoch, link in links.items()])
        assert [isinstance(answer, ExpertReply) for answer in answers] == [True, True, False]
        worker.claim("a", 5)
        asked = [links[1].send(call._replace(call_id=epoch, epoch=epoch)) for epoch in (1, 2, 5)]
        answers = outcomes(asked)
        assert [isinstance(answer, ExpertReply) for answer in answers] == [False, True, True]
        is_native = HAS_LOOP and kernels.name == "native"
        assert not is_native or machine.loop(0).num_pairs == 4 * len(call.x_RD)
        for link in links.values():
            link.close()
    worker.heard("a")
    worker.heard("b")
