"""What can send a load, by name."""

from moe_model.errors import ConfigError
from scaling.loads.base import Sender
from scaling.loads.own import OwnSender
from scaling.loads.tools.aiperf import Aiperf
from scaling.loads.tools.guidellm import Guidellm
from scaling.loads.tools.vllm import Vllm

SENDERS: dict[str, type[Sender]] = {"own": OwnSender, "guidellm": Guidellm, "aiperf": Aiperf, "vllm": Vllm}


def sender(name: str) -> Sender:
    """Raises ConfigError, which names those that there are."""
    if name == "lm-eval":
        raise ConfigError(
            "load: tool: lm-eval measures answers and tells no times: docs/load-generators.md has its command"
        )
    if name not in SENDERS:
        raise ConfigError(f"load: tool: {name!r} is none of {', '.join(SENDERS)}")
    return SENDERS[name]()
