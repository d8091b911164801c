"""What was built for a check is there for its request, once, and not for ever."""

from coordinator.engine.messages.request import ConstraintSource
from coordinator.structured.compiler import ConstraintCompiler
from coordinator.structured.ready import ReadyConstraints
from tests.coordinator.structured.walks import EOS, TINY, load_tokenizer

A, B, C = (ConstraintSource("regex", (text,)) for text in "abc")


def test_each_is_taken_once() -> None:
    ready = ReadyConstraints[str](2)
    ready.put(A, "first")
    ready.put(A, "second")
    assert {ready.take(A), ready.take(A)} == {"first", "second"}
    assert ready.take(A) is None


def test_what_no_request_takes_is_forgotten() -> None:
    ready = ReadyConstraints[str](2)
    ready.put(A, "a")
    ready.put(B, "b")
    ready.put(A, "a again")
    ready.put(C, "c")
    assert ready.take(B) is None
    assert (ready.take(C), ready.take(A), ready.take(A)) == ("c", "a again", None)


def test_one_source_cannot_fill_the_memory() -> None:
    """As when many requests with one schema are refused after their check, because the queue is full."""
    ready = ReadyConstraints[int](3)
    for number in range(10):
        ready.put(A, number)
    assert [ready.take(A) for _ in range(4)] == [7, 8, 9, None]
    ready.put(B, 10)
    assert ready.take(B) == 10


def test_a_checked_constraint_is_not_built_twice() -> None:
    compiler = ConstraintCompiler(load_tokenizer(TINY), 320, [EOS])
    compiler.check(A)
    taken = compiler.take(A)
    assert taken is not None
    assert compiler.take(A) is None
    built = compiler.build(A)
    assert built is not taken, "copies of one build share the limit of its states"
    compiler.close()
    assert compiler.build(B) is not None, "an engine's side builds what another process has checked"
