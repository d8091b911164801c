"""YAML from outside, as a configuration and as an experiment read it."""

import pytest
import yaml

from moe_model.files.strict_yaml import loads


def test_merges_and_a_few_aliases_are_read() -> None:
    text = "base: &b {x: 1, y: 2}\nmade:\n  <<: *b\n  y: 3\nmore:\n  <<: [*b, {z: 1e-3}]\n  7: &n {<<: *b}\n"
    assert loads(text, 8) == {
        "base": {"x": 1, "y": 2},
        "made": {"x": 1, "y": 3},
        "more": {"x": 1, "y": 2, "z": 0.001, 7: {"x": 1, "y": 2}},
    }


@pytest.mark.parametrize(
    ("text", "most", "text_keys", "said"),
    [
        ("a: 1\nb: 2\n'a': 3", 0, False, "'a' is there twice, line 3"),
        ("x: {7: 1, 7: 2}", 0, False, "'7' is there twice, line 1"),
        ("x: {y: {7: 1}}", 0, True, "a key that is no text, line 1: '7'"),
        ("? [1, 2]\n: 3", 0, True, "a key that is no text, line 1"),
        ("? [1, 2]\n: 3", 0, False, "unhashable"),
        ("a: &x 1\nb: *x", 0, False, "an alias, line 2: write it out"),
        ("a: &x 1\nb: [*x, *x, *x]", 2, False, "has more than 2 aliases, line 2: write it out"),
    ],
)
def test_what_is_refused(text: str, most: int, text_keys: bool, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        loads(text, most, text_keys=text_keys)
