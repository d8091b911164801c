"""Files that people write, YAML or JSON, read into typed values; what a value does not have is refused by
name."""

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from moe_model.errors import ConfigError

T = TypeVar("T")
# Larger files than these are no descriptions of experiments.
MAX_BYTES = 64 << 20


def read(path: Path, kind: type[T]) -> T:
    """The file as a value of `kind`. Raises ConfigError, a line that names the file and the place in it."""
    return convert(load(path), kind, str(path))


def load(path: Path) -> Any:
    """What a YAML or JSON file says. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8") from error
    try:
        return yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{path}: neither YAML nor JSON: {line}") from error


def convert(found: Any, kind: type[T], name: str) -> T:
    """Raises ConfigError, a line that begins with `name`."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error


class _UniqueKeys(yaml.SafeLoader):
    """A key that is given twice is an error, and so is an alias: a short file must not become a long one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"an alias, line {mark.line + 1}: write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if not isinstance(value, str):
                raise yaml.YAMLError(f"a key that is no text, line {key.start_mark.line + 1}: {value!r}")
            if value in seen:
                raise yaml.YAMLError(f"{value!r} is there twice, line {key.start_mark.line + 1}")
            seen.add(value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which the library reads, takes 1e-09 for text; YAML 1.2 and JSON take it for a number.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)
