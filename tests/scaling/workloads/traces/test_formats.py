"""Traces in the published forms, made up here; and what is wrong with hostile ones, by the line."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import Target
from scaling.workloads.plan import workload
from scaling.workloads.request import Workload
from scaling.workloads.traces.table import FORMATS

TOKENIZER = Path(__file__).parents[4] / "demo" / "checkpoint" / "tokenizer.json"
TARGET = Target("h:1", "h:2", "m", vocab_size=4096, max_seq_len=2048, tokenizer=TOKENIZER)

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,30,10
2023-11-16 18:17:04.0319600,120,4
2023-11-16 18:17:06.9799600,7,44
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,30,10
2024-05-10 00:00:02+00:00,120,4
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,40,18,58,Conversation log
45,GPT-4,60,0,60,API log
118,ChatGPT,12,6,18,Conversation log
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
{"timestamp": 0, "input_length": 700, "output_length": 6, "hash_ids": [1, 3]}
"""
SHAREGPT = json.dumps(
    [
        {
            "id": "a",
            "conversations": [
                {"from": "human", "value": "def main():"},
                {"from": "gpt", "value": "return 1"},
            ],
        },
        {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
        {
            "id": "c",
            "messages": [{"role": "user", "content": "import os"}, {"role": "assistant", "content": "x = 2"}],
        },
    ]
)


def read(
    folder: Path, text: str | bytes, kind: str, load: Load | None = None, target: Target = TARGET
) -> Workload:
    path = folder / "trace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    asked = load or Load()
    return workload(
        Load(asked.concurrency, asked.rate, asked.num_requests, trace=str(path), trace_format=kind), target, 1
    )


def shape(found: Workload) -> list[tuple[int, int, float | None]]:
    return [
        (len(each.prompt), each.num_output, None if each.due_s is None else round(each.due_s, 6))
        for each in found.requests
    ]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (AZURE_2023, "azure", [(30, 10, 0), (120, 4, 0.052), (7, 44, 3.0)]),
        (AZURE_2024, "azure", [(30, 10, 0), (120, 4, 1.99007)]),
        (BURSTGPT, "burstgpt", [(40, 18, 0), (12, 6, 113)]),
        (MOONCAKE, "mooncake", [(700, 6, 0), (600, 5, 3)]),
    ],
    ids=["azure 2023", "azure 2024", "burstgpt", "mooncake"],
)
def test_lengths_and_times_are_those_of_the_trace(
    tmp_path: Path, text: str, kind: str, expected: list[tuple[int, int, float]]
) -> None:
    found = read(tmp_path, text, kind)
    assert shape(found) == expected
    assert found.notes == ()
    assert found == read(tmp_path, text.replace("\n", "\r\n"), kind), "ends of lines as on Windows"
    assert found == read(tmp_path, "\ufeff" + text + "\n", kind), "a mark of the byte order"


def test_a_rate_stretches_the_times(tmp_path: Path) -> None:
    found = read(tmp_path, AZURE_2023, "azure", Load(rate=4.0))
    assert [each[2] for each in shape(found)] == [0, pytest.approx(0.052 * 0.5 / 3, abs=1e-5), 0.5]


def test_with_a_concurrency_times_do_not_count(tmp_path: Path) -> None:
    assert [each[2] for each in shape(read(tmp_path, AZURE_2023, "azure", Load(concurrency=2)))] == [None] * 3


def test_no_more_requests_than_asked_for(tmp_path: Path) -> None:
    assert len(read(tmp_path, AZURE_2023 + "broken\n", "azure", Load(num_requests=2)).requests) == 2


def test_prompts_of_mooncake_share_their_blocks(tmp_path: Path) -> None:
    later, first = sorted(read(tmp_path, MOONCAKE, "mooncake").requests, key=lambda each: len(each.prompt))
    assert first.prompt[:512] == later.prompt[:512]
    assert first.prompt[512:600] != later.prompt[512:]


def test_what_does_not_fit_the_context_is_cut_and_said(tmp_path: Path) -> None:
    small = Target("h:1", "h:2", "m", vocab_size=4096, max_seq_len=100)
    found = read(tmp_path, AZURE_2023, "azure", target=small)
    assert shape(found)[1][:2] == (96, 4)
    assert found.notes == ("1 of 3 requests were cut to a context of 100 tokens",)


def test_conversations_are_texts_of_the_model(tmp_path: Path) -> None:
    found = read(tmp_path, SHAREGPT, "sharegpt", Load(concurrency=1))
    assert len(found.requests) == 2, "one has no answer"
    lines = "\n".join(json.dumps(each) for each in json.loads(SHAREGPT))
    assert read(tmp_path, lines, "sharegpt", Load(concurrency=1)) == found
    assert found.requests[0].prompt == (304, 1810, 850)
    assert found.requests[0].num_output > 0


def test_conversations_of_a_model_without_tokenizer_have_lengths_only(tmp_path: Path) -> None:
    plain = Target("h:1", "h:2", "m", vocab_size=4096, max_seq_len=2048)
    found = read(tmp_path, SHAREGPT, "sharegpt", Load(rate=5.0), plain)
    assert [each[:2] for each in shape(found)] == [(3, 2), (3, 2)]
    assert "4 bytes of text count as a token" in found.notes[0]


def test_prompts_are_cut_from_a_text(tmp_path: Path) -> None:
    text = "import os\n" * 50
    found = read(tmp_path, text, "text", Load(concurrency=2, num_requests=4))
    assert [each[:2] for each in shape(found)] == [(32, 32)] * 4
    assert set(found.requests[0].prompt) == set(found.requests[1].prompt)


def test_a_trace_without_times_needs_to_be_told_when(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no times: say one of concurrency and rate"):
        read(tmp_path, SHAREGPT, "sharegpt")


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
HOSTILE = [
    ("azure", "", "empty"),
    ("azure", HEAD, "no request"),
    ("azure", "TIME,ContextTokens\n", "line 1: no column 'TIMESTAMP'; there are TIME, ContextTokens"),
    (
        "azure",
        HEAD + "2023-11-16 18:17:03,1,2\n2023-11-16 18:17:03,x,2\n",
        "line 3: ContextTokens: 'x' is no number",
    ),
    ("azure", HEAD + "yesterday,1,2\n", "line 2: TIMESTAMP: 'yesterday' is no time"),
    ("azure", HEAD + "2023-13-16 18:17:03,1,2\n", "line 2: TIMESTAMP"),
    ("azure", HEAD + "2023-11-16 18:17:03,1\n", "line 2: 2 values for 3 columns"),
    ("azure", HEAD + "2023-11-16 18:17:03,-1,2\n", "line 2: ContextTokens: '-1' is no number of tokens"),
    ("azure", HEAD + "2023-11-16 18:17:03,1.5,2\n", "line 2: ContextTokens: '1.5' is no number of tokens"),
    ("azure", HEAD + "2023-11-16 18:17:03,nan,2\n", "line 2: ContextTokens: 'nan' is no finite number"),
    (
        "azure",
        HEAD + "2023-11-16 18:17:03,1e300,2\n",
        "line 2: ContextTokens: '1e300' is no number of tokens",
    ),
    ("azure", HEAD + "1000-01-01 00:00:00,1,2\n9000-01-01 00:00:00,1,2\n", "its last request is due"),
    ("azure", b"\xff\xfe\x00", "not text in UTF-8"),
    (
        "burstgpt",
        "Timestamp,Request tokens,Response tokens\ninf,1,1\n",
        "line 2: Timestamp: 'inf' is no finite",
    ),
    ("mooncake", "{}\n", "line 1: no 'timestamp'"),
    ("mooncake", "[]\n", "line 1: no JSON object"),
    ("mooncake", "{\n", "line 1: not JSON"),
    ("mooncake", "[" * 100_000, "line 1: not JSON"),
    (
        "mooncake",
        '{"timestamp": 0, "input_length": true, "output_length": 1}',
        "line 1: input_length: True is no number",
    ),
    (
        "mooncake",
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["x"]}',
        "line 1: hash_ids",
    ),
    ("sharegpt", "[{}]", "conversation 1: no list 'conversations'"),
    ("sharegpt", '[\n{"a": 1},\n{]', "line 3: not JSON"),
    ("sharegpt", '[{"conversations": [{"from": "human"}, 3]}]', "conversation 1: .* is no turn with a text"),
    (
        "sharegpt",
        '[{"conversations": [{"value": "hi \\ud83d"}, {"value": "x"}]}]',
        "half of a surrogate pair",
    ),
    ("burstgpt", '"' + "x" * 200_000 + '"\n', "line 1: not CSV"),
    ("text", "", "empty"),
    ("wiki", "", "trace_format: 'wiki' is none of azure, burstgpt, mooncake, sharegpt, text"),
]


@pytest.mark.parametrize(("kind", "text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_wrong_is_one_line(tmp_path: Path, kind: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text, kind, Load(concurrency=1) if kind in ("text", "sharegpt") else None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), kind=st.sampled_from(FORMATS))
def test_no_file_is_another_error(tmp_path: Path, text: bytes, kind: str) -> None:
    for start in (b"", HEAD.encode(), b'{"timestamp": ', b'[{"conversations": '):
        try:
            found = read(tmp_path, start + text, kind, Load(concurrency=1))
        except ConfigError:
            continue
        assert found.requests
