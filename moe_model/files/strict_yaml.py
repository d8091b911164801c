"""YAML from outside: keys that are given twice and references without end are errors, which the library lets
pass."""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, ScalarNode

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def loads(text: str, most_aliases: int = 0, *, text_keys: bool = False) -> Any:
    """Parses YAML, or JSON. `most_aliases`: a short text must not become a long one. `text_keys`: no other
    keys, as in JSON. Raises yaml.YAMLError, ValueError, OverflowError, RecursionError."""
    loader = _Strict(text)
    loader.most_aliases, loader.text_keys = most_aliases, text_keys
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Strict(yaml.SafeLoader):
    """All is looked at before anything is made of it."""

    most_aliases = 0
    text_keys = False
    _num_aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._num_aliases += 1
            if self._num_aliases > self.most_aliases:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                said = f"has more than {self.most_aliases} aliases" if self.most_aliases else "an alias"
                raise yaml.YAMLError(f"{said}, line {mark.line + 1}: write it out")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        mapping: MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if self.text_keys and key.tag != _TEXT:
                raise yaml.YAMLError(f"a key that is no text, line {line}: {str(key.value)[:80]!r}")
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"{key.value[:80]!r} is there twice, line {line}")
                seen.add((key.tag, key.value))
        return mapping


# YAML 1.1, which the library reads, takes 1e-09 for text; YAML 1.2 and JSON take it for a number.
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)
