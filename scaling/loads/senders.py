"""What can send a load, by name."""

from pathlib import Path

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import Sender
from scaling.loads.own import OwnSender
from scaling.loads.tools.aiperf import Aiperf
from scaling.loads.tools.guidellm import Guidellm
from scaling.loads.tools.tool import program
from scaling.loads.tools.vllm import Vllm
from scaling.workloads.traces.table import FORMATS

SENDERS: dict[str, type[Sender]] = {"own": OwnSender, "guidellm": Guidellm, "aiperf": Aiperf, "vllm": Vllm}


def missing_load(load: Load) -> str:
    """What this machine lacks to send it, in one line; empty: it can be tried."""
    if load.trace is not None and not Path(load.trace).is_file():
        return f"load: trace: {load.trace}: no such file"
    try:
        sender(load.tool)
        if load.tool != "own":
            program(load.tool)
    except ConfigError as error:
        return str(error)
    return ""


def wrong_load(load: Load) -> list[str]:
    """What cannot be of a load, whatever the machine, a sentence each."""
    found = []
    if load.tool not in SENDERS:
        try:
            sender(load.tool)
        except ConfigError as error:
            found.append(str(error))
    elif load.tool != "own" and (load.trace is not None or load.lengths != "exact"):
        found.append(f"load: {load.tool} sends requests of one length: take tool: own for others")
    if load.trace is not None and load.trace_format not in FORMATS:
        found.append(f"load: trace_format: {load.trace_format!r} is none of {', '.join(FORMATS)}")
    return found


def sender(name: str) -> Sender:
    """Raises ConfigError, which names those that there are."""
    if name == "lm-eval":
        raise ConfigError(
            "load: tool: lm-eval measures answers and tells no times: docs/load-generators.md has its command"
        )
    if name not in SENDERS:
        raise ConfigError(f"load: tool: {name!r} is none of {', '.join(SENDERS)}")
    return SENDERS[name]()
