"""A cable that takes time: two TAP devices, each in a network namespace, and a process that carries frames.

The kernel's own way (netem) is not on every machine. The process is one of its own, so that a busy test does
not delay it. Run as a program it imports nothing of ours:

    python relay.py NAMESPACE DEVICE NAMESPACE DEVICE

It says READY, and from then on answers each line `DELAY JITTER` (seconds, one way) with the number of frames
that it has carried so far. It ends with its standard input.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_MAX_FRAME = 65536
# As a queue of a network card: more than this on its way, and the newest is lost.
_MAX_FRAMES = 20_000


def main(arguments: list[str]) -> None:
    here, there = (_open_tap(*arguments[i : i + 2]) for i in (0, 2))
    os.write(1, b"READY\n")
    _carry({here: there, there: here}, random.Random(0))


def _open_tap(namespace: str, device: str) -> int:
    """A new device, which goes away with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns", namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def _carry(other_end: dict[int, int], rng: random.Random) -> None:
    """With jitter, frames overtake each other, as they do on a network with several paths."""
    delay = jitter = 0.0
    on_the_way: list[tuple[float, int, int, bytes]] = []
    num_frames = 0
    while True:
        # Not poll, which counts in milliseconds.
        wait = None if not on_the_way else max(0.0, on_the_way[0][0] - time.monotonic())
        for fd in select.select((0, *other_end), (), (), wait)[0]:
            if fd == 0:
                line = os.read(0, 4096).decode()
                if not line:
                    return
                delay, jitter = map(float, line.split()[-2:])
                os.write(1, f"{num_frames}\n".encode())
                continue
            while frame := _read(fd):
                num_frames += 1
                due = time.monotonic() + delay + rng.uniform(-jitter, jitter)
                if len(on_the_way) < _MAX_FRAMES:
                    heapq.heappush(on_the_way, (due, num_frames, other_end[fd], frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _write(*heapq.heappop(on_the_way)[2:])


def _read(tap: int) -> bytes:
    try:
        return os.read(tap, _MAX_FRAME)
    except OSError:
        return b""


def _write(tap: int, frame: bytes) -> None:
    # A device that is down carries nothing.
    with suppress(OSError):
        os.write(tap, frame)


class Relay:
    """The process of a relay. It carries at once what comes, until `set` says otherwise."""

    def __init__(self, namespace: str, device: str, other_namespace: str, other_device: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, namespace, device, other_namespace, other_device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._expect("READY")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def set(self, delay: float, jitter: float = 0.0) -> int:
        """Seconds one way, for frames that come from now on; how many came until now."""
        if not 0 <= jitter <= delay:
            raise ValueError(f"jitter {jitter} is not within the delay {delay}")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay} {jitter}\n")
        self._process.stdin.flush()
        return int(self._expect(""))

    def close(self) -> None:
        """Idempotent."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)

    def _expect(self, start: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line or not line.startswith(start):
            raise RuntimeError(f"the relay ended with {self._process.wait(10)}")
        return line


if __name__ == "__main__":
    main(sys.argv[1:])
