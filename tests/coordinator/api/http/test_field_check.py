"""Whatever a request says is done, refused by name, harmless, or told back; never dropped in silence."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.http.field_check import MAX_HEADER, WARNINGS_HEADER, FieldCheck, warnings_header
from coordinator.api.http.fields import HARMLESS, REFUSED, Route
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.text.chat_template import ChatTemplate
from tests.coordinator.api.fakes import served_model
from tests.coordinator.api.http_fakes import Http

GENERATING = (Route.COMPLETIONS, Route.CHAT)
CHAT_BODY = {"messages": [{"role": "user", "content": "x"}]}
TEMPLATE = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")


def chatting(**more: Any) -> Http:
    return Http(model=served_model(chat_template=TEMPLATE), **more)


@pytest.mark.parametrize("route", GENERATING)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_to_be_had_is_refused_by_name(name: str, route: Route) -> None:
    with pytest.raises(ApiError) as caught:
        FieldCheck().body({name: {"a": "value"}}, route)
    assert caught.value.reason is Reason.UNSUPPORTED_FEATURE
    assert str(caught.value).startswith(f"{name}: is not supported by this server")
    assert "\n" not in str(caught.value)
    for neutral in (None, *(REFUSED[name].neutral or (False, "", [], {}, 0))):
        assert FieldCheck(strict=True).body({name: neutral}, route) == []


@pytest.mark.parametrize("route", GENERATING)
@given(value=st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.integers()), st.just({"a": []})))
def test_harmless_fields_never_cause_an_error(route: Route, value: object) -> None:
    assert FieldCheck(strict=True).body(dict.fromkeys(HARMLESS, value), route) == []


@pytest.mark.parametrize(
    ("route", "name", "elsewhere"),
    [
        (Route.COMPLETIONS, "max_completion_tokens", Route.CHAT),
        (Route.COMPLETIONS, "messages", Route.CHAT),
        (Route.COMPLETIONS, "top_logprobs", Route.CHAT),
        (Route.COMPLETIONS, "continue_final_message", Route.CHAT),
        (Route.CHAT, "prompt", Route.COMPLETIONS),
        (Route.CHAT, "echo", Route.COMPLETIONS),
    ],
)
def test_a_field_of_the_other_route_is_refused(route: Route, name: str, elsewhere: Route) -> None:
    with pytest.raises(ApiError, match=f"{name}: .* it is a field of {elsewhere}"):
        FieldCheck().body({name: 5}, route)


async def test_a_typo_is_told_in_the_answer_and_in_a_header() -> None:
    response = await Http().complete(temprature=0, maxTokens=5, zzz=1, topk=None)
    warnings = [
        "maxTokens: unknown, passed over; did you mean max_tokens?",
        "temprature: unknown, passed over; did you mean temperature?",
        "zzz: unknown, passed over",
    ]
    assert (response.status_code, response.json()["warnings"]) == (200, warnings)
    assert response.headers[WARNINGS_HEADER] == "; ".join(warnings)


async def test_an_answer_without_warnings_has_no_such_member() -> None:
    response = await Http().complete(temperature=0, user="me")
    assert "warnings" not in response.json()
    assert WARNINGS_HEADER not in response.headers


@pytest.mark.parametrize("path", GENERATING)
async def test_a_stream_tells_in_its_header_and_in_its_first_chunk(path: Route) -> None:
    body = {"prompt": [5]} if path is Route.COMPLETIONS else CHAT_BODY
    response = await chatting().post(path, {**body, "stream": True, "temprature": 0})
    events = [
        line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")
    ]
    chunks = [json.loads(event) for event in events]
    told = "temprature: unknown, passed over; did you mean temperature?"
    assert response.headers[WARNINGS_HEADER] == told
    assert [chunk.get("warnings") for chunk in chunks] == [[told], *[None] * (len(chunks) - 1)]


async def test_strict_fields_refuse_a_typo_by_name() -> None:
    error = (await Http(strict_fields=True).complete(temprature=0)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "temprature")
    assert error["message"].endswith("did you mean temperature?")


async def test_many_odd_names_are_bounded() -> None:
    names = {f"é\n{number}{'x' * 300}": 1 for number in range(100)}
    response = await Http().complete(**names)
    warnings = response.json()["warnings"]
    assert len(warnings) == 9
    assert warnings[-1] == "92 more unknown fields, passed over"
    assert all("\n" not in warning and len(warning) < 200 for warning in warnings)
    header = response.headers[WARNINGS_HEADER]
    assert header.isascii()
    assert len(header) <= MAX_HEADER
    assert warnings_header(["\udcff"]).isascii()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"structured_outputs": {"schema": {}}}, "structured_outputs.schema"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
        ),
        ({"experts": {"allowed": [0]}}, "experts.allowed"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "strict": True}}, "response_format.strict"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "skema": 1}}},
            "response_format.json_schema.skema",
        ),
        ({"stream": True, "stream_options": {"include_useage": True}}, "stream_options.include_useage"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"disable_any_whitespace": True}, "disable_any_whitespace"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"json_schema": {}, "regex": "a"}, "regex"),
    ],
)
async def test_an_unknown_key_of_a_known_object_is_refused_by_its_path(change: Any, param: str) -> None:
    response = await Http().complete(**change)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"prefix": True}, "messages[0].prefix"),
        ({"reasoning_content": 1}, "messages[0].reasoning_content"),
        ({"tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0].function"),
        ({"tool_call_id": "1"}, "messages[0].tool_call_id"),
        ({"roll": "user"}, "messages[0].roll"),
        ({"content": [{"type": "text", "text": "x", "bold": True}]}, "messages[0].content[0].bold"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
    ],
)
async def test_an_unknown_key_of_a_message_is_refused_by_its_path(message: Any, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "x", **message}]}
    for path in (Route.CHAT, Route.TOKENIZE):
        response = await chatting().post(path, body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), path


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ({"messages": [{"role": "user", "content": "x", "nam": "bob"}]}, "name"),
        ({"messages": [{"role": "user", "content": "x", "tool_cals": [1]}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "rolle": "user"}]}, "role"),
        ({"messages": [{"role": "user", "konten": "x"}]}, "content"),
        ({"structured_outputs": {"whitespace_patern": " "}}, ""),
        ({"structured_outputs": {"json_objekt": True}}, "json_object"),
    ],
)
async def test_what_is_refused_is_no_suggestion(change: Any, meant: str) -> None:
    response = await chatting().post(Route.CHAT, {**CHAT_BODY, **change})
    assert response.status_code == 400, response.text
    _, _, suggestion = response.json()["error"]["message"].partition("is no field that this server knows")
    assert suggestion == (f"; did you mean {meant}?" if meant else "")


async def test_our_own_answer_can_be_sent_back_as_a_message() -> None:
    answer = (await chatting().post(Route.CHAT, CHAT_BODY)).json()["choices"][0]["message"]
    more: dict[str, Any] = {
        "tool_calls": [],
        "name": None,
        "annotations": [],
        "cache_control": {"type": "ephemeral"},
    }
    body = {"messages": [*CHAT_BODY["messages"], {**answer, **more}, *CHAT_BODY["messages"]]}
    response = await chatting(strict_fields=True).post(Route.CHAT, body)
    assert response.status_code == 200, response.text


async def test_a_schema_need_not_be_named_and_may_be() -> None:
    wrapper = {"name": "n", "description": "d", "strict": False, "schema": {"type": "object"}}
    body = {"response_format": {"type": "json_schema", "json_schema": wrapper}}
    # The served model has no compiler of constraints: the request got so far.
    assert (await Http().complete(**body)).json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (Route.TOKENIZE, {"prompt": "x", "messages": []}, "prompt"),
        (Route.TOKENIZE, {**CHAT_BODY, "add_special_tokens": True}, "add_special_tokens"),
        (Route.TOKENIZE, {**CHAT_BODY, "tools": [{}]}, "tools[0].type"),
        (Route.TOKENIZE, {"prompt": "x", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        (Route.TOKENIZE, {"prompt": "x", "continue_final_message": True}, "continue_final_message"),
        (Route.TOKENIZE, {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        (Route.TOKENIZE, {**CHAT_BODY, "chat_template": "x"}, "chat_template"),
        (Route.CHAT, {**CHAT_BODY, "add_special_tokens": True}, "add_special_tokens"),
    ],
)
async def test_other_requests_that_could_only_be_answered_in_part(path: Route, body: Any, param: str) -> None:
    response = await chatting().post(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (Route.TOKENIZE, {"messages": [{"role": "x"}]}, "messages[0].role"),
        (Route.TOKENIZE, {**CHAT_BODY, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
        (Route.TOKENIZE, {"prompt": "x" * (5 << 20)}, "prompt"),
        (Route.DETOKENIZE, {"tokens": [40, 1 << 30]}, "tokens[1]"),
        (Route.CHAT, {"messages": [{"role": "x"}]}, "messages[0].role"),
        (Route.CHAT, {**CHAT_BODY, "guided_choice": []}, "guided_choice"),
        (Route.COMPLETIONS, {"prompt": "x", "regex": ""}, "regex"),
        (
            Route.COMPLETIONS,
            {"prompt": "x", "max_tokens": 0, "prompt_logprobs": 0, "grammar": "a"},
            "grammar",
        ),
        (Route.COMPLETIONS, {"prompt": "x", "structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        (Route.COMPLETIONS, {"prompt": "x", "stream": True, "guided_choice": [""]}, "guided_choice"),
        (Route.COMPLETIONS, {"prompt": "x", "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_is_wrong_is_named_as_the_request_has_it(path: Route, body: Any, param: str) -> None:
    error = (await chatting().post(path, body)).json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


async def test_other_routes_tell_as_well() -> None:
    told = ["textt: unknown, passed over"]
    for path, body in ((Route.TOKENIZE, {"prompt": "x"}), (Route.DETOKENIZE, {"tokens": [40]})):
        response = await Http().post(path, {**body, "textt": 1})
        assert (response.status_code, response.json()["warnings"]) == (200, told), path
        assert (await Http(strict_fields=True).post(path, {**body, "textt": 1})).status_code == 400


async def test_parameters_of_a_url_do_nothing_and_that_is_said() -> None:
    for method, path, body in (
        ("POST", "/v1/completions", {"prompt": [5]}),
        ("GET", "/v1/models", None),
        ("POST", "/tokenize", {"prompt": "x"}),
    ):
        async with Http().client() as client:
            response = await client.request(method, f"{path}?max_tokens=5&api-version=1", json=body)
        assert response.status_code == 200
        assert response.headers[WARNINGS_HEADER] == "?max_tokens: unknown, passed over"
        async with Http(strict_fields=True).client() as client:
            response = await client.request(method, f"{path}?max_tokens=5", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "?max_tokens")
    async with Http(strict_fields=True).client() as client:
        assert (await client.get("/metrics?name[]=up")).status_code == 200
        assert (await client.get("/health?now=1")).status_code == 200
