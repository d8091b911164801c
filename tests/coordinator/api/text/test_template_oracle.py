"""Chat templates as transformers renders them."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.api.text import chat_template
from coordinator.api.text.chat_template import ChatMessage, ChatTemplate
from tests.coordinator.api.text.templates import TEMPLATES
from tests.moe_model.text.libraries import byte_level

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "image_token": "<image>"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["°C", "°F"]},
        "days": {"type": "array", "items": {"type": "object", "properties": {}}},
    },
    "required": ["unit"],
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "<b>", "parameters": PARAMETERS}}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"tools": [TOOL]},
    {"tools": [TOOL, TOOL], "enable_thinking": False},
    {"documents": [{"title": "straße", "text": "a & b"}]},
    {"enable_thinking": True, "reasoning_effort": "high"},
]
WORDS = st.sampled_from(
    ["hi", "", " two  words \n", "<think>\nso\n</think>\n\nyes", "é東🙂", "{{ 1 }}", "<&>'\""]
)
MESSAGE = st.builds(ChatMessage, role=st.sampled_from(["user", "assistant"]), content=WORDS)
TALKS = st.tuples(
    st.lists(st.builds(ChatMessage, role=st.just("system"), content=WORDS), max_size=1),
    st.lists(MESSAGE, min_size=1, max_size=5),
).map(lambda parts: parts[0] + parts[1])


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    Path(path).write_text(byte_level().to_str())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **SPECIAL)

    def render(source: str, talk: list[ChatMessage], begins: bool, variables: dict[str, Any]) -> str:
        text = tokenizer.apply_chat_template(
            talk, chat_template=source, add_generation_prompt=begins, tokenize=False, **variables
        )
        assert isinstance(text, str)
        return text

    return render


@pytest.fixture(scope="module", params=TEMPLATES)
def source(request: pytest.FixtureRequest) -> str:
    return TEMPLATES[request.param]


@pytest.fixture(scope="module")
def ours(source: str) -> Iterator[ChatTemplate]:
    with pytest.MonkeyPatch.context() as patch:
        # However busy the machine is: what counts is time on a processor.
        patch.setattr(chat_template, "RENDER_SECONDS", 60.0)
        with closing(ChatTemplate(source, special_tokens=SPECIAL)) as template:
            yield template


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(talk=TALKS, begins=st.booleans(), variables=st.sampled_from(VARIABLES))
def test_a_rendering_is_transformers(
    source: str,
    ours: ChatTemplate,
    theirs: Callable[..., str],
    talk: list[ChatMessage],
    begins: bool,
    variables: dict[str, Any],
) -> None:
    found = ours.render(talk, add_generation_prompt=begins, variables=variables)
    expected = theirs(source, talk, begins, variables)
    if "strftime_now" in source and found != expected:
        # Midnight came between the two.
        expected = expected.replace(time.strftime("%Y-%m-%d", time.localtime(time.time() - 60)), "")
        found = found.replace(time.strftime("%Y-%m-%d"), "")
    assert found == expected


@pytest.mark.parametrize(
    "expression",
    [
        "{{ {'b': 'é<&>', 'a': [1, none, true, 1.5]} | tojson }}",
        "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true) }}",
        "{{ {'b': ['é'], 'a': 1} | tojson(indent=4) }}",
        "{{ [1, 2] | tojson(false, none, ('; ', '=')) }}",
        "{{ bos_token is defined }} {{ sep_token is defined }} {{ sep_token }}",
        "{{ tools is none }} {{ documents is none }} {{ tools is defined }}",
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "a{%- generation -%} b {%- endgeneration %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}",
        "{% generation %}{{ bos_token }}\n{% endgeneration %}\n  {% generation %}c{% endgeneration %}",
        "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(b=2).b }}",
        "{{ strftime_now('%d %b %Y') | length }} {{ strftime_now('%H:%M') | length }}",
        "{{ messages | map(attribute='role') | list }}{{ messages[0].items() | list }}",
        "{{ messages[0].get('tool_calls') }}{{ messages[0].tool_calls is defined }}",
        "  {% if true %}  \n x {% endif %}\n\n",
    ],
)
def test_what_a_template_is_given(expression: str, theirs: Callable[..., str]) -> None:
    talk = [ChatMessage(role="user", content="hi\n")]
    with closing(ChatTemplate(expression, special_tokens=SPECIAL)) as template:
        assert template.render(talk) == theirs(expression, talk, True, {})


def test_tools_have_a_template_of_their_own() -> None:
    with closing(ChatTemplate("{{ tools }}", for_tools="tools: {{ tools[0].function.name }}")) as template:
        talk = [ChatMessage(role="user", content="hi")]
        assert template.render(talk) == "None"
        assert template.render(talk, variables={"tools": [TOOL]}) == "tools: weather"


def test_a_request_may_name_another_special_token_but_not_bos(theirs: Callable[..., str]) -> None:
    talk = [ChatMessage(role="user", content="hi")]
    source = "{{ bos_token }}{{ pad_token }}"
    with closing(ChatTemplate(source, special_tokens=SPECIAL)) as template:
        found = template.render(talk, variables={"pad_token": "p", "bos_token": "b"})
    assert found == "<bos>p"
    assert theirs(source, talk, True, {"pad_token": "p"}) == "<bos>p"
