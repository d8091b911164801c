"""What belongs to the whole process of a command or of an engine: its threads."""

import logging
import sys

from coordinator.config.engine import EngineConfig
from coordinator.server.compute import device_of
from moe_model.kernels.choice import set_torch_threads
from moe_model.machine import usable_cores

logger = logging.getLogger(__name__)

# Seconds.
SWITCH_INTERVAL = 0.0005


def configure_process(config: EngineConfig) -> None:
    """Settings that belong to the whole process; called once, by the command that owns it."""
    # The engine lets go of the interpreter at every operation of torch and waits so long to get it back from
    # a busy event loop: with Python's 5 ms an overloaded server loses half of its rate.
    sys.setswitchinterval(SWITCH_INTERVAL)
    set_torch_threads(config.kernels, device_of(config), config.num_threads)
    cores = usable_cores()
    asked = config.num_threads is not None
    count, why = (config.num_threads, "as asked for") if asked else (cores.number, cores.why)
    logger.info("threads: %d (%s)", count, why)
