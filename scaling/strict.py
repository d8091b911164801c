"""Files that people write, YAML or JSON, read into typed values; what a value does not have is refused by
name."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from moe_model.errors import ConfigError
from moe_model.files import strict_yaml

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
        return strict_yaml.loads(text, text_keys=True)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{path}: neither YAML nor JSON: {line}") from error


def convert(found: Any, kind: type[T], name: str) -> T:
    """Raises ConfigError, a line that begins with `name`."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error
