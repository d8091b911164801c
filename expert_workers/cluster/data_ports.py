"""The ports of a machine on which its workers listen for rows: where a firewall must know them before."""

import os
import re

from moe_model.errors import ConfigError

DATA_PORTS = "EXPERTMESH_DATA_PORTS"
_FIRST, _LAST = 1024, 65535


def data_ports() -> range:
    """As the environment has it: MIN-MAX, both included; nothing where it has none, which is any port.
    Raises ConfigError."""
    given = os.environ.get(DATA_PORTS, "")
    if not given:
        return range(0)
    found = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", given)
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if not _FIRST <= low <= high <= _LAST:
        raise ConfigError(f"{DATA_PORTS}: {given[:40]!r} is not MIN-MAX with ports from {_FIRST} to {_LAST}")
    return range(low, high + 1)
