"""The cases of all families. One more family: one more module of them, and its name here."""

from tests.families.case import Case
from tests.families.grouped_cases import GROUPED

CASES: dict[str, Case] = {case.name: case for case in (*GROUPED,)}
