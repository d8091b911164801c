"""How many tokens fit: the context, the cache, the server's limit."""

from typing import Any

import pytest

from coordinator.api.shared.errors import Code, Reason
from coordinator.engine.messages.request import ContextOverflow
from tests.coordinator.api.fakes import served_model
from tests.coordinator.api.made_requests import ids, refused, resolved


@pytest.mark.parametrize(
    ("text", "model", "limit"),
    [
        (ids(1), {}, 31),
        (ids(31), {}, 1),
        (ids(1), {"max_output_tokens": 5}, 5),
        (ids(8), {"kv_capacity_tokens": 16}, 8),
        (ids(1) + " stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }", {}, 40),
        (ids(500) + " stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }", {}, 40),
        (ids(8) + " stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }", {"kv_capacity_tokens": 16}, 8),
        (ids(500), {"default_overflow": ContextOverflow.SLIDE}, 40),
    ],
)
def test_unset_max_tokens_is_all_that_fits(text: str, model: dict[str, Any], limit: int) -> None:
    assert resolved(text, served_model(**model)).request.stop.max_tokens == limit


@pytest.mark.parametrize(
    ("text", "field", "metadata"),
    [
        (ids(32), "prompt.token_ids", {"prompt_tokens": "32", "max_tokens": "1"}),
        ('text: "' + "~" * 31 + '"', "prompt.text", {"prompt_tokens": "32", "max_tokens": "1"}),
        (
            ids(10) + " stopping { max_tokens: 23 }",
            "stopping.max_tokens",
            {"prompt_tokens": "10", "max_tokens": "23"},
        ),
    ],
)
def test_what_exceeds_the_context_is_refused(text: str, field: str, metadata: dict[str, str]) -> None:
    error = refused(text)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, Reason.CONTEXT_LENGTH_EXCEEDED)
    assert error.field == field
    assert error.metadata == {**metadata, "max_context_length": "32"}


def test_what_fills_the_context_exactly_is_taken() -> None:
    assert resolved(ids(10) + " stopping { max_tokens: 22 }").request.stop.max_tokens == 22


def test_a_server_that_slides_can_be_told_to_stop() -> None:
    model = served_model(default_overflow=ContextOverflow.SLIDE)
    assert refused(ids(32) + " stopping { context_overflow: CONTEXT_OVERFLOW_STOP }", model).field


@pytest.mark.parametrize("slide", ["", " stopping { context_overflow: CONTEXT_OVERFLOW_SLIDE }"])
def test_what_can_never_fit_the_cache_is_refused(slide: str) -> None:
    model = served_model(kv_capacity_tokens=16)
    resolved(ids(15) + slide, model)
    error = refused(ids(16) + slide, model)
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, Reason.KV_CAPACITY_TOO_SMALL)
    assert error.metadata["capacity"] == "16"


def test_asking_for_more_than_the_cache_holds_is_refused() -> None:
    model = served_model(kv_capacity_tokens=16)
    resolved(ids(8) + " stopping { max_tokens: 8 }", model)
    assert refused(ids(8) + " stopping { max_tokens: 9 }", model).reason is Reason.KV_CAPACITY_TOO_SMALL


def test_a_sliding_window_needs_no_more_than_the_context() -> None:
    model = served_model(kv_capacity_tokens=32)
    resolved(ids(500) + " stopping { max_tokens: 40 context_overflow: CONTEXT_OVERFLOW_SLIDE }", model)


def test_without_a_tokenizer_token_ids_work() -> None:
    valid = resolved(ids(3), served_model(tokenizer=None))
    assert not valid.return_text
    assert not resolved(ids(3) + " response { return_text: false }", served_model(tokenizer=None)).return_text
