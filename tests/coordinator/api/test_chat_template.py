"""Chat templates: what a rendering is given, and where it ends."""

import pytest

from coordinator.api.chat_template import ChatMessage, ChatTemplate, ChatTemplateError

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
TALK = [ChatMessage(role="user", content="hi"), ChatMessage(role="assistant", content="hello ")]


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
    template = ChatTemplate("{{ bos_token }}{{ messages | length }}{{ mood }}{{ tools }}", bos_token="<s>")
    variables = {"mood": "glad", "bos_token": "x", "messages": []}
    assert template.render(TALK, variables=variables) == "<s>2gladNone"
