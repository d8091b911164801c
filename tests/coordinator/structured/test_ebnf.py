import random
import re

import pytest

from coordinator.engine.messages.errors import ConstraintError
from coordinator.structured.ebnf import is_ebnf, to_lark
from tests.coordinator.structured.walks import Compiling, check_walks


@pytest.mark.parametrize(
    ("grammar", "regex"),
    [
        ('root ::= "a" [b-d]+ | "x"?', "a[b-d]+|x?"),
        ('root ::= word "end"\nword ::= [a-z]+', "[a-z]+end"),
        (r'root ::= [^a-z"\]\\\n^-]{2,3}', r'[^a-z"\]\\\n^-]{2,3}'),
        (r'root ::= "\x41\u00e9\U0001F600\n\t\"\\"', 'Aé😀\n\t"\\\\'),
        ('root ::= a-b a_b\na-b ::= "1"\n\na_b ::=\n  "2"\n  | "3"  # or\n', "1[23]"),
        ("root ::= (. .)*", "(?s:(..)*)"),
        ("root ::= [-a] [b-]", "[-a][b-]"),
        ('root ::= "" | "a"{2} "b"{1,} "c"{ 0 , 1 }', "|a{2}b+c?"),
        ('root ::= A\nA ::= "cap"\n', "cap"),
    ],
)
def test_its_language(compiling: Compiling, grammar: str, regex: str) -> None:
    assert is_ebnf(grammar)
    check_walks(
        compiling,
        compiling.compile("grammar", grammar),
        lambda text: re.fullmatch(regex, text) is not None,
    )


def test_rules_may_recur(compiling: Compiling) -> None:
    constraint = compiling.compile("grammar", 'root ::= "(" root ")" | pair | ""\npair ::= "<>"')
    ended = [
        text
        for seed in range(20)
        for text, _, has_ended in compiling.steps(constraint, random.Random(seed))
        if has_ended
    ]
    assert len(set(ended)) > 2
    for text in ended:
        inside = text.replace(b"<>", b"")
        assert inside == b"(" * (len(inside) // 2) + b")" * (len(inside) // 2)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('a ::= "x"', "no rule root"),
        ("root ::= b", "rule b is not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2: rule root is defined twice"),
        ('"a" root ::= "b"', "line 1: a rule must begin"),
        ('root ::= "a\n"', "line 1: .* is not understood"),
        ("root ::= []", r"\[\] matches nothing"),
        (r'root ::= "\ud800"', "d800 is no character"),
    ],
)
def test_what_is_wrong_is_said(grammar: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        to_lark(grammar)


def test_the_other_notation_is_not_taken_for_it() -> None:
    assert not is_ebnf('start: "root ::=" | b\nb: /x ::=/')
