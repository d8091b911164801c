import pytest

from moe_model.files import strict_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "duplicate key 'a'"),
        (b'{"x": {"a": 1, "a": 2}}', "duplicate key 'a'"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999"),
        (b"[" * 100_000, "too deeply"),
        (b'"\xff"', "utf-8"),
        ("[1]".encode("utf-16"), "utf-8"),
        (b"[1] 2", "Extra data"),
        (b"", "Expecting value"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
    ],
)
def test_refuses_what_is_not_plain_json(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        strict_json.loads(text)


def test_reads_plain_json() -> None:
    assert strict_json.loads(b'{"a": [1, 2.5, null, true, "x"]}') == {"a": [1, 2.5, None, True, "x"]}


@pytest.mark.parametrize("value", ["x" * 1000, "a\nb", [[1] * 1000], {"k": "v"}, 10**100, None, float("nan")])
def test_brief_is_one_short_line(value: object) -> None:
    assert len(strict_json.brief(value)) <= 80
    assert "\n" not in strict_json.brief(value)
