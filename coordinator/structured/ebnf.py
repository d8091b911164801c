"""EBNF as llama.cpp and XGrammar write it, `root ::= "a" [0-9]+ | rule`, rewritten in the library's notation.

Token by token; the library checks what comes out. Rules that do not recur become terminals.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.engine.messages.errors import ConstraintError

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<head>[A-Za-z_][\w-]*)[ \t]*::=
      | (?P<name>[A-Za-z_][\w-]*)
      | (?P<literal>"(?:[^"\\\n]|\\.)*")
      | (?P<set>\[\^?(?:[^\]\\\n]|\\.)*\])
      | (?P<any>\.)
      | (?P<mark>[|()*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})""",
    re.VERBOSE,
)
_CHARACTER = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.DOTALL)
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}
_HEAD = re.compile(r"(?m)^\s*[A-Za-z_][\w-]*[ \t]*::=")

ROOT = "root"


@dataclass(slots=True)
class _Rule:
    parts: list[tuple[str, str]]
    is_terminal: bool = False


def is_ebnf(text: str) -> bool:
    """Whether it has a rule as EBNF writes it; the library's own notation has `name:`."""
    return _HEAD.search(text) is not None


def to_lark(text: str) -> str:
    """Raises ConstraintError."""
    rules = _parse(text)
    _find_terminals(rules)
    names = {name: f"{'T' if rule.is_terminal else 'r'}_{i}" for i, (name, rule) in enumerate(rules.items())}
    lines = [f"{names[name]}: {_body(rule, names)}" for name, rule in rules.items()]
    return "\n".join([f"start: {names[ROOT]}", *lines])


def _parse(text: str) -> dict[str, _Rule]:
    rules: dict[str, _Rule] = {}
    current: _Rule | None = None
    for kind, token, line in _tokens(text):
        if kind == "head":
            if token in rules:
                raise ConstraintError(f"line {line}: rule {token} is defined twice")
            current = rules[token] = _Rule([])
        elif current is None:
            raise ConstraintError(f"line {line}: a rule must begin with name ::=")
        else:
            current.parts.append((kind, token))
    if ROOT not in rules:
        raise ConstraintError(f"has no rule {ROOT}")
    for rule in rules.values():
        for kind, token in rule.parts:
            if kind == "name" and token not in rules:
                raise ConstraintError(f"rule {token} is not defined")
    return rules


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ConstraintError(
                f"line {line}: {text[position : position + 20].split()[:1]} is not understood"
            )
        kind = str(match.lastgroup)
        if kind != "space":
            yield kind, match[kind], line
        line += match[0].count("\n")
        position = match.end()


def _find_terminals(rules: dict[str, _Rule]) -> None:
    """Marks rules that reach no cycle, leaves first (Kahn's algorithm)."""
    users: dict[str, set[str]] = {name: set() for name in rules}
    missing: dict[str, int] = {}
    for name, rule in rules.items():
        used = {token for kind, token in rule.parts if kind == "name"}
        missing[name] = len(used)
        for other in used:
            users[other].add(name)
    ready = deque(name for name, count in missing.items() if count == 0)
    while ready:
        name = ready.popleft()
        rules[name].is_terminal = True
        for user in users[name]:
            missing[user] -= 1
            if missing[user] == 0:
                ready.append(user)


def _body(rule: _Rule, names: dict[str, str]) -> str:
    return " ".join(_part(kind, token, names) for kind, token in rule.parts) or '""'


def _part(kind: str, token: str, names: dict[str, str]) -> str:
    if kind == "name":
        return names[token]
    if kind == "literal":
        return json.dumps("".join(_characters(token[1:-1])), ensure_ascii=False)
    if kind == "any":
        return "/(?s:.)/"
    return _set(token) if kind == "set" else token


def _characters(text: str) -> Iterator[str]:
    for match in _CHARACTER.finditer(text):
        code = match[1] or match[2] or match[3]
        if code is None:
            yield _NAMED.get(match[4], match[4]) if match[4] else match[5]
        elif int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
            raise ConstraintError(f"{code} is no character")
        else:
            yield chr(int(code, 16))


def _set(token: str) -> str:
    """A regular expression's set; every character but the range's minus becomes its number."""
    inner = token[1:-1]
    negated = inner.startswith("^")
    items: list[str] = []
    for match in _CHARACTER.finditer(inner, 1 if negated else 0):
        is_minus = match[0] == "-" and items and match.end() < len(inner) and items[-1] != "-"
        items.append("-" if is_minus else f"\\x{{{ord(next(_characters(match[0]))):x}}}")
    if not items:
        raise ConstraintError("[] matches nothing")
    return f"/[{'^' if negated else ''}{''.join(items)}]/"
