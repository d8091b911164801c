"""A step that lost its experts is scheduled again: no request, no token, no random number is lost."""

import pytest

from coordinator.engine.core.engine import EXPERT_WAIT_TURN, Engine
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.request import Request
from moe_model.errors import ExpertsLostError
from moe_model.sampling.params import SamplingParams
from tests.cache_sizes import whole_sizes
from tests.coordinator.engine.fakes import ScriptedRunner
from tests.models import Collected, collect, drain, make_request, random_model, tiny_engine


class Lossy:
    """Experts that are lost until they have been waited for `turns` times."""

    def __init__(self, turns: int, *, has_time: bool = True) -> None:
        self.turns, self.has_time = turns, has_time
        self.waits, self.finds = 0, 0

    def check(self, number: int, _step: Step) -> None:
        if number > 1 and self.waits < self.turns:
            raise ExpertsLostError("no live worker holds expert 0", (1,))

    def wait_for_lost(self, timeout: float) -> bool:
        assert timeout == EXPERT_WAIT_TURN, "callers are heard in between"
        self.waits += 1
        return self.has_time

    def found(self) -> None:
        self.finds += 1

    def tell_dispatches(self) -> None:
        """Nothing is dispatched."""

    def idle(self) -> None:
        """Lost or not, there is nothing to look after."""


class Waiting(Lossy):
    """Experts that are waited for a number of times."""

    def wait_for_lost(self, timeout: float) -> bool:
        self.waits += 1
        return self.waits <= self.turns


def lossy_engine(lossy: Lossy) -> Engine:
    scheduler = Scheduler(whole_sizes(32), max_num_seqs=8, max_step_tokens=64)
    return Engine(scheduler, ScriptedRunner(lossy.check), 12, lossy)


def test_requests_wait_and_lose_nothing() -> None:
    lossy = Lossy(turns=3)
    engine = lossy_engine(lossy)
    for name in "abc":
        engine.submit(make_request(name, max_tokens=4))
    results = drain(engine)
    assert all(result.token_ids == [3, 4, 5, 6] for result in results.values())
    assert lossy.waits == 3
    assert lossy.finds == engine.stats().num_steps - 3, "each step that lacked nothing is told of"
    engine.check_integrity()


def test_what_comes_while_it_waits_is_heard() -> None:
    lossy = Lossy(turns=1000)
    engine = lossy_engine(lossy)
    engine.submit(make_request("r", max_tokens=4))
    engine.step()
    assert engine.step() == []
    assert engine.abort("r")
    assert not engine.has_work
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_when_the_time_is_over_requests_end_with_the_error_until_a_step_succeeds() -> None:
    lossy = Lossy(turns=1000, has_time=False)
    engine = lossy_engine(lossy)
    results: dict[str, Collected] = {}
    engine.submit(make_request("first", max_tokens=4))
    while engine.has_work:
        collect(engine.step(), results)
    last = results["first"].last
    assert last is not None
    assert isinstance(last.error, ExpertsLostError)
    engine.submit(make_request("second"))
    (output,) = engine.step()
    assert isinstance(output.error, ExpertsLostError), "no second wait while nothing has changed"
    lossy.turns = 0
    engine.submit(make_request("third", max_tokens=2))
    assert drain(engine)["third"].token_ids == [3, 4]


@pytest.mark.parametrize("num_waits", [0, 5])
def test_who_needs_no_lost_expert_goes_on_and_prolongs_nobody_s_wait(num_waits: int) -> None:
    def check(_number: int, step: Step) -> None:
        if any(chunk.sequence.request.request_id == "lacks" for chunk in step.chunks):
            raise ExpertsLostError("no live worker holds expert 0", (1,))

    scheduler = Scheduler(whole_sizes(4096), max_num_seqs=8, max_step_tokens=64)
    engine = Engine(scheduler, ScriptedRunner(check), 8192, Waiting(num_waits))
    engine.submit(make_request("lacks", max_tokens=4))
    engine.submit(make_request("other", max_tokens=8000))
    results: dict[str, Collected] = {}
    while "lacks" not in results or results["lacks"].last is None:
        collect(engine.step(), results)
    assert engine.stats().num_steps == num_waits + 1
    assert isinstance(results["lacks"].last.error, ExpertsLostError)
    assert results["other"].last is None
    assert results["other"].token_ids
    assert engine.abort("other")
    engine.check_integrity()


@pytest.mark.parametrize("num_others", [0, 2])
@pytest.mark.parametrize(
    "error", [ExpertsLostError("no live worker holds expert 0", (1,)), MemoryError(), RuntimeError("boom")]
)
def test_no_request_fails_for_what_it_only_drafted(error: Exception, num_others: int) -> None:
    """A drafted token may go to a lost expert, or need memory that there is not."""
    drafted = []

    def check(_number: int, step: Step) -> None:
        if step.num_drafted:
            drafted.append(step)
            raise error

    speculation = Speculation(3, is_measured=False)
    scheduler = Scheduler(whole_sizes(32), 8, 64, speculation=speculation)
    engine = Engine(scheduler, ScriptedRunner(check), 24, Waiting(0))
    # It draws 5, then 6: that is what followed 5 before.
    engine.submit(make_request("drafts", (5, 6, 7, 8, 4), max_tokens=6))
    for number in range(num_others):
        engine.submit(make_request(f"other{number}", max_tokens=6))
    results = drain(engine)
    assert drafted
    assert results["drafts"].token_ids == [5, 6, 7, 8, 9, 10]
    for number in range(num_others):
        assert results[f"other{number}"].token_ids == [3, 4, 5, 6, 7, 8]
    engine.check_integrity()
    assert len(drafted) == 1, "the next steps have no drafts"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_step_that_runs_again_draws_the_same_tokens(temperature: float) -> None:
    """Over the real model: the step fails after the cache was written, then runs again."""
    model = random_model()
    request = make_request(max_tokens=8, sampling=SamplingParams(temperature, seed=5))
    expected = _generate(tiny_engine(model), request)
    runner = tiny_engine(model)._runner

    class FailsAfterwards:
        def __init__(self) -> None:
            self.calls = 0

        def run(self, step: Step) -> StepResult:
            result = runner.run(step)
            self.calls += 1
            if self.calls % 2:
                raise ExpertsLostError("lost after the work was done")
            return result

        def forget(self, key: int) -> None:
            runner.forget(key)

    scheduler = Scheduler(whole_sizes(64), max_num_seqs=8, max_step_tokens=64)
    again = Engine(scheduler, FailsAfterwards(), 12, Lossy(turns=0))
    assert _generate(again, request) == expected


def _generate(engine: Engine, request: Request) -> list[int]:
    engine.submit(request)
    return drain(engine)["r"].token_ids
