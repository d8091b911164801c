"""An exception that travels becomes the same one on the other side."""

import pytest

from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.errors import ExchangeError, NoTokenLeftError
from coordinator.engine.messages.failure import KINDS, Failure
from moe_model.errors import ExpertMeshError, ExpertsLostError, WorldError


def travelled(error: ExpertMeshError) -> ExpertMeshError:
    failure = decode(encode(Failure.of(error)))
    assert isinstance(failure, Failure)
    return failure.error()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_travels(kind: type[ExpertMeshError]) -> None:
    found = travelled(kind("what went wrong"))
    assert type(found) is kind
    assert str(found) == "what went wrong"


def test_what_an_exception_carries_travels_with_it() -> None:
    lost, field = travelled(ExpertsLostError("lost", (1, 3))), travelled(ExchangeError("is none", "path"))
    assert isinstance(lost, ExpertsLostError)
    assert lost.ranks == (1, 3)
    assert isinstance(field, ExchangeError)
    assert field.field == "path"
    assert travelled(ExchangeError("busy")).__dict__ == {"field": None}
    assert str(travelled(NoTokenLeftError())).endswith("leave no token to draw")


class OfAnotherRoomError(WorldError):
    """Known to nobody but its own room."""


def test_others_become_what_they_are_kinds_of() -> None:
    found = travelled(OfAnotherRoomError("far away"))
    assert type(found) is WorldError
    assert str(found) == "far away"
    assert type(Failure("FromTheFutureError", "new").error()) is ExpertMeshError


def test_details_that_a_kind_does_not_have_are_left_out() -> None:
    """As when the other side is newer: the reader of a stream gets the failure, and no TypeError instead."""
    found = Failure("WorldError", "gone", {"ranks": (1,), "args": "x", "since": "then"}).error()
    assert type(found) is WorldError
    assert (str(found), found.__dict__) == ("gone", {})


def test_each_is_new() -> None:
    failure = Failure.of(WorldError("one for many"))
    assert failure.error() is not failure.error()
