"""The process that starts a Ray of the server's own and then becomes its keeper:
`python -m coordinator.server.ray_process`, started by the launcher.
"""

import faulthandler
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from coordinator.server.launcher.control import STOP_SIGNALS
from coordinator.server.launcher.messages import Begun, Failed, Message, RayReady, encode
from expert_workers.cluster.keeper import end_when_told
from expert_workers.cluster.own_ray import start_own_ray
from moe_model.errors import ExpertMeshError


def main() -> NoReturn:
    """Turns into the keeper; ends with 1 where Ray does not start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    channel, last_words, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    for descriptor in (channel, last_words):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(last_words)
    with socket.socket(fileno=channel) as launcher:
        # The library waits for Ray, and can be told nothing meanwhile.
        threading.Thread(target=_end_when_told, args=(launcher, folder), daemon=True).start()
        _tell(launcher, Begun())
        try:
            place = start_own_ray(folder)
        except ExpertMeshError as error:
            _tell(launcher, Failed(str(error)))
            os._exit(1)
        _tell(launcher, RayReady(place.address, dict(place.environment)))
        os.set_inheritable(channel, True)
        keeper = [sys.executable, "-P", "-m", "expert_workers.cluster.keeper", str(channel), str(folder)]
        os.execv(keeper[0], keeper)  # noqa: S606 - our own interpreter, no shell


def _tell(launcher: socket.socket, message: Message) -> None:
    with suppress(ConnectionError):
        launcher.sendall(encode(message))


def _end_when_told(launcher: socket.socket, folder: Path) -> None:
    """Until the keeper does the same; what is started meanwhile, the kernel ends with this process."""
    os._exit(end_when_told(launcher, folder))


if __name__ == "__main__":
    main()
