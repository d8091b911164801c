"""What can send a load, by name."""

from moe_model.errors import ConfigError
from scaling.loads.base import Sender
from scaling.loads.own import OwnSender

SENDERS: dict[str, type[Sender]] = {"own": OwnSender}


def sender(name: str) -> Sender:
    """Raises ConfigError, which names those that there are."""
    if name not in SENDERS:
        raise ConfigError(f"load: tool: {name!r} is none of {', '.join(SENDERS)}")
    return SENDERS[name]()
