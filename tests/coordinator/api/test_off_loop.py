"""What takes long is done off the event loop's thread, so that others' tokens flow meanwhile."""

import threading

import pytest

from coordinator.api.http import shapes as http_shapes
from coordinator.api.http.json import MAX_FIELDS
from coordinator.api.requests import responses as generations
from coordinator.api.requests.responses import MAX_INLINE_BYTES
from coordinator.api.validation import prompt as validate_prompt
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import ends_at_once
from tests.coordinator.api.http_fakes import Http

pytestmark = BOTH_ENGINES

LONG = "one two " * (MAX_INLINE_BYTES // 8 + 1)


class Threads:
    """Which threads call a method of a class."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.seen: set[threading.Thread] = set()
        original = getattr(owner, name)

        def wrapper(*arguments: object, **named: object) -> object:
            self.seen.add(threading.current_thread())
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, wrapper)


async def test_the_answer_to_tokenize_is_written_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch, http_shapes, "token_text")
    response = await Http(ends_at_once()).post("/tokenize", {"prompt": LONG})
    found = response.json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"]) > 4096
    assert "".join(found["token_strs"][1:]) == LONG
    assert threads.seen
    assert threading.main_thread() not in threads.seen


async def test_many_short_prompts_are_one_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch, Tokenizer, "encode")
    prompts = ["a " * 10] * 60
    monkeypatch.setattr(generations, "MAX_INLINE_BYTES", 1000)
    response = await Http(ends_at_once(), max_requests=64).complete(prompt=prompts, max_tokens=1)
    assert response.status_code == 200
    assert threading.main_thread() not in threads.seen


async def test_tokenize_is_bounded_as_prompts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_prompt, "MAX_PROMPT_TOKENS", 100)
    http = Http(ends_at_once())
    assert (await http.post("/tokenize", {"prompt": "~" * 99})).json()["count"] == 100
    response = await http.post("/tokenize", {"prompt": "~" * 100})
    assert response.status_code == 400
    assert "101 tokens are more than 100" in response.json()["error"]["message"]


async def test_a_body_of_very_many_fields_is_refused() -> None:
    http = Http(ends_at_once())
    fields = {f"field_{i}": 1 for i in range(MAX_FIELDS)}
    response = await http.complete(**fields)
    assert response.status_code == 400
    assert f"fields, more than {MAX_FIELDS}" in response.json()["error"]["message"]
