"""A step is told of where a request of it has a trace, with its dispatches and no others."""

from types import SimpleNamespace

from coordinator.engine.messages.records import DispatchSpan, StepRecord, TracedRequest, TracedStep
from coordinator.engine.telemetry.traces import StepTraces

TRACED = StepRecord(1, 9, 0.1, 5, 2, 3, 3, traces=(TracedRequest(7),))
UNTRACED = StepRecord(1, 9, 0.1, 5, 2, 3, 3)


def dispatch(layer: int) -> SimpleNamespace:
    return SimpleNamespace(layer=layer, start_ns=2 + layer, end_ns=3 + layer, rows={0: 4, 2: 1})


def test_a_traced_step_is_told_to_each_follower() -> None:
    traces, told = StepTraces(), list[TracedStep]()
    traces.follow(told.append)
    traces.follow(told.append)
    traces.dispatched([dispatch(0), dispatch(1)])
    traces.step(TRACED)
    assert told == 2 * [TracedStep(TRACED, (DispatchSpan(0, 2, 3, 2, 5), DispatchSpan(1, 3, 4, 2, 5)))]


def test_other_steps_are_not_told_and_leave_nothing_behind() -> None:
    traces, told = StepTraces(), list[TracedStep]()
    traces.follow(told.append)
    traces.dispatched([dispatch(0)])
    traces.step(UNTRACED)
    assert told == []
    traces.step(TRACED)
    assert told == [TracedStep(TRACED)]
