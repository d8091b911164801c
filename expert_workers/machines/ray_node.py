"""RayNode: Ray's processes of one machine, below a process of ours that ends with this one. Light."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

from expert_workers.cluster.own_folder import OwnFolder
from expert_workers.machines.node_spec import NodeSpec, receive_line
from expert_workers.machines.wakes import Wakes
from expert_workers.processes import children, descendants, kill_and_wait
from moe_model.errors import ClusterError

# Ray itself gives up a node after 30 s; its libraries load before that.
START_SECONDS = 90.0
_END_SECONDS = 20.0
# Without these there is no node; each ends with a line in Ray's logs.
_NEEDED = ("raylet", "gcs_server")
_STDERR = 2
_MODULE = "expert_workers.machines.node_process"


class RayNode:
    """Made with `start`; `end` ends it, and so does the end of this process, whatever it is."""

    def __init__(self, folder: OwnFolder, channel: socket.socket, process: "subprocess.Popen[bytes]") -> None:
        self._folder = folder
        self._channel = channel
        self._process = process
        self._watched: dict[int, str] = {}

    @classmethod
    def start(cls, spec: NodeSpec, environment: Mapping[str, str], wakes: Wakes) -> Self:
        """Raises ClusterError where Ray does not start, HaltedError when a signal comes first."""
        folder = OwnFolder()
        ours, its = socket.socketpair()
        try:
            with its:
                command = [sys.executable, "-P", "-m", _MODULE, str(its.fileno()), str(folder.path)]
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.DEVNULL,
                    # What our commands say on standard output, they say themselves.
                    stdout=_STDERR,
                    pass_fds=(its.fileno(),),
                    env=environment,
                )
        except BaseException:
            ours.close()
            folder.remove()
            raise
        made = cls(folder, ours, process)
        try:
            made._wait_started(spec, wakes)
        except BaseException:
            made.end()
            raise
        return made

    def wait_lost(self, wakes: Wakes, timeout: float | None = None) -> str:
        """Until one of its processes has ended, whose name it returns; empty after `timeout` seconds. Raises
        HaltedError."""
        poll = select.poll()
        for descriptor in self._watched:
            poll.register(descriptor, select.POLLIN)
        ready = wakes.wait(poll, timeout)
        return self._watched[ready[0]] if ready else ""

    def end(self) -> None:
        """With all that it has started, and its files. Idempotent."""
        with suppress(OSError):
            self._channel.sendall(b"end\n")
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            # The kernel ends Ray's own processes with it, and not those that they have started.
            below = descendants(self._process.pid)
            self._process.kill()
            self._process.wait()
            kill_and_wait(below, _END_SECONDS)
        self._channel.close()
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()
        self._folder.remove()

    def _wait_started(self, spec: NodeSpec, wakes: Wakes) -> None:
        with suppress(ConnectionError):
            self._channel.sendall(spec.line())
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not wakes.wait(poll, START_SECONDS):
            raise ClusterError(f"Ray has not started within {START_SECONDS:g} s: is the machine overloaded?")
        line = receive_line(self._channel)
        if not line:
            raise ClusterError("Ray's process has died while it started")
        if why := str(json.loads(line)["failed"]):
            raise ClusterError(f"Ray cannot be started: {why}")
        self._watch()

    def _watch(self) -> None:
        """Raises ClusterError for what has ended already."""
        found = {os.pidfd_open(self._process.pid): "keeper"}
        self._watched = found
        for name in _NEEDED:
            for process in children(self._process.pid, name):
                with suppress(ProcessLookupError):
                    found[os.pidfd_open(process.pid)] = name
        if "raylet" not in found.values():
            raise ClusterError("Ray's raylet has died while it started")
