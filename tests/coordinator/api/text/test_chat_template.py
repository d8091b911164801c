"""Chat templates: what a rendering is given, where it ends, and what becomes of those that want too much."""

import logging
import os
import signal
import threading
from contextlib import closing

import pytest

from coordinator.api.text import chat_template
from coordinator.api.text.chat_template import (
    NUM_RENDERERS,
    ChatMessage,
    ChatTemplate,
    ChatTemplateError,
    ChatTemplateLimitError,
)
from moe_model.errors import BusyError, ConfigError
from tests.coordinator.api.hostile_templates import HOSTILE, QUICK, switch
from tests.coordinator.confined.children import children

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
TALK = [ChatMessage(role="user", content="hi"), ChatMessage(role="assistant", content="hello ")]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: what counts is time on a processor."""
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 60.0)


def test_the_generation_prompt_is_asked_for() -> None:
    template = ChatTemplate(TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}")
    assert template.render(TALK) == "<user>hi</><assistant>hello</><assistant>"
    assert template.render(TALK, add_generation_prompt=False) == "<user>hi</><assistant>hello</>"


def test_a_final_message_can_be_continued() -> None:
    template = ChatTemplate(TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}")
    assert template.render(TALK, continue_final_message=True) == "<user>hi</><assistant>hello "


def test_the_end_of_a_final_message_is_not_mistaken_for_the_templates_own_text() -> None:
    talk = [ChatMessage(role="assistant", content="s")]
    template = ChatTemplate("{{ messages[0].content }}</assistant>")
    assert template.render(talk, continue_final_message=True) == "s"


def test_a_final_message_that_is_left_out_cannot_be_continued() -> None:
    with pytest.raises(ChatTemplateError, match="the last message is not in the text"):
        ChatTemplate("{{ messages[0].content }}").render(TALK, continue_final_message=True)


def test_variables_of_a_request_cannot_take_the_servers_place() -> None:
    source = "{{ bos_token }}{{ messages | length }}{{ mood }}{{ tools }}"
    template = ChatTemplate(source, special_tokens={"bos_token": "<s>"})
    variables = {"mood": "glad", "bos_token": "x", "messages": []}
    assert template.render(TALK, variables=variables) == "<s>2gladNone"


@pytest.mark.parametrize("name", QUICK)
def test_a_template_that_takes_too_much_is_refused_by_name(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_refusal(HOSTILE[name], caplog)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_every_template_that_takes_too_much_is_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_refusal(HOSTILE[name], caplog)


def check_refusal(source: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(ChatTemplate(source, name="odd.jinja")) as template, caplog.at_level(logging.WARNING):
        template.try_out()
        assert template.refusal.startswith("chat template odd.jinja ")
    assert any(limit in template.refusal for limit in ("0.4 s", "224 MiB", "4194304 characters", "nested"))
    assert caplog.messages == [template.refusal]


def test_a_conversation_that_takes_too_much_leaves_the_template_to_others() -> None:
    talk = [ChatMessage(role="user", content="format pads")]
    with closing(ChatTemplate(switch())) as template:
        template.try_out()
        assert template.refusal == ""
        with pytest.raises(ChatTemplateLimitError, match="takes more than 224 MiB"):
            template.render(talk)
        assert template.render(TALK) == "hi hello  "


def test_a_text_that_is_no_template_says_so() -> None:
    words = r"^chat template odd\.jinja: line 1: "
    with (
        closing(ChatTemplate("{% if", name="odd.jinja")) as template,
        pytest.raises(ConfigError, match=words),
    ):
        template.try_out()


def test_a_text_that_is_no_template_of_tools_says_so() -> None:
    words = r"^chat template odd\.jinja: template tool_use: line 2: "
    with (
        closing(ChatTemplate("good", for_tools="\n{% if", name="odd.jinja")) as template,
        pytest.raises(ConfigError, match=words),
    ):
        template.try_out()


def test_a_template_that_wants_other_conversations_is_kept() -> None:
    with closing(ChatTemplate("{{ raise_exception('roles must alternate') }}")) as template:
        template.try_out()
        assert template.refusal == ""
        with pytest.raises(ChatTemplateError, match=r"^roles must alternate$"):
            template.render(TALK)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ nothing.there }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ 'a' + 1 }}", "TypeError: "),
        ("{{ messages.__class__.__mro__ }}", "SecurityError: "),
        ("{{ 'a' * 9 }}", "TemplateError: \\* is not allowed here"),
        ("{{ 10 ** 10 ** 10 }}", "TemplateError: \\*\\* is not allowed here"),
    ],
)
def test_a_templates_own_errors_are_told(source: str, words: str) -> None:
    with closing(ChatTemplate(source)) as template, pytest.raises(ChatTemplateError, match=words):
        template.render(TALK)


def test_odd_text_comes_through() -> None:
    with closing(ChatTemplate("{{ messages[0].content }}{{ '\ud800' }}")) as template:
        assert template.render([ChatMessage(role="user", content="東京 🙂\x00\n")]) == "東京 🙂\x00\n\ud800"


def test_the_largest_messages_fit() -> None:
    talk = [ChatMessage(role="user", content="a" * ((4 << 20) - 8) + "🙂")]
    with closing(ChatTemplate("{{ messages[0].content }}")) as template:
        assert template.render(talk) == talk[0]["content"]


def test_variables_that_are_too_deep_are_refused() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    with closing(ChatTemplate("x")) as template, pytest.raises(ChatTemplateError, match="no JSON"):
        template.render(TALK, variables={"deep": deep})


def test_a_rendering_that_stands_still_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    with closing(ChatTemplate(switch())) as template:
        template.render(TALK)
        (pid,) = children() - before
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
        with pytest.raises(ChatTemplateLimitError, match="takes more than"):
            template.render(TALK)
        assert children() <= before


def test_waiting_for_a_renderer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "WAIT_SECONDS", 0.0)
    over = threading.Event()

    def hog() -> None:
        while not over.is_set():
            with pytest.raises((ChatTemplateLimitError, BusyError)):
                template.render([ChatMessage(role="user", content="loops without output")])

    def render_until_refused() -> None:
        while True:
            template.render(TALK)

    threads = [threading.Thread(target=hog) for _ in range(NUM_RENDERERS)]
    with closing(ChatTemplate(switch())) as template:
        for thread in threads:
            thread.start()
        try:
            with pytest.raises(BusyError, match="too many conversations"):
                render_until_refused()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert template.render(TALK) == "hi hello  "


def test_its_processes_end_with_it() -> None:
    before = children()
    with closing(ChatTemplate(switch())) as template:
        template.render(TALK)
        assert len(children() - before) == 1
    assert children() <= before
