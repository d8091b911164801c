"""Engine: drafts are counted as far as they become output."""

import pytest

from coordinator.engine.core.speculation import Speculation
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.records import StepRecord
from coordinator.engine.messages.request import Request, StopRules
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.models import drain


class DrawsDrafts(CountingRunner):
    """Draws 4, and then all that is drafted, and 9."""

    def run(self, step: Step) -> StepResult:
        super().run(step)
        (chunk,) = step.chunks
        first, *more = (*chunk.draft, 9) if chunk.draft else (4,)
        return StepResult([first], further={chunk.sequence.key: more} if more else {})


class Told(Speculation):
    """Keeps how many tokens steps with drafts gave. An observer too, of those steps."""

    def __init__(self) -> None:
        super().__init__(2, is_measured=False)
        self.num_tokens: list[int] = []
        self.records: list[StepRecord] = []

    def ran(self, num_sequences: int, num_tokens: int, seconds: float, *, is_drafted: bool) -> None:
        super().ran(num_sequences, num_tokens, seconds, is_drafted=is_drafted)
        if is_drafted:
            self.num_tokens.append(num_tokens)

    def step(self, record: StepRecord) -> None:
        if record.num_draft_tokens:
            self.records.append(record)


@pytest.mark.parametrize(("eos", "drawn"), [(3, [3]), (5, [3, 5]), (9, [3, 5, 9])])
def test_tokens_beyond_the_end_of_a_sequence_are_not_counted(eos: int, drawn: list[int]) -> None:
    """3 and 5 followed 4 before, so they are drafted."""
    told, stop = Told(), StopRules(max_tokens=8, eos_token_ids=frozenset({eos}))
    engine = engine_over(DrawsDrafts(), observer=told, speculation=told)
    engine.submit(Request("one", (4, 3, 5), SamplingParams(), stop))
    assert drain(engine)["one"].token_ids == [4, *drawn]
    (record,) = told.records
    assert (record.num_draft_tokens, record.num_accepted_tokens) == (2, len(drawn) - 1)
    assert [record.num_new_tokens] == told.num_tokens == [len(drawn)]
