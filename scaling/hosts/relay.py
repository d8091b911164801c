"""A cable that takes time: two TAP devices, each in a network namespace, and a process that carries frames.

The kernel's own way (netem) is not on every machine. The process is one of its own, so that a busy caller
does not delay it. Run as a program it imports nothing of ours:

    python relay.py NAMESPACE DEVICE NAMESPACE DEVICE

It says READY, and from then on answers each line `DELAY JITTER RATE` (seconds, one way; bits a second each
way, 0: as fast as it goes) with the number of frames that have come so far. It ends with its standard input.
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
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# The sender's kernel need neither cut what it sends into packets nor sum it up: a frame has up to 64 KiB of a
# stream, and says so in a header, which the other end is given as it is. See virtio_net_hdr of Linux.
_OFFLOADS = 0x01 | 0x02 | 0x04  # TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
_MAX_FRAME = 1 << 17
# As a queue of a network card: more than this on its way, and the newest is lost.
_MAX_FRAMES = 20_000
# The same of a line that is slow, in seconds.
_MAX_QUEUE = 0.4
# Read one after the other before those that are due are looked at.
_MAX_AT_ONCE = 8
# Of virtio_net_hdr, before each frame: flags, kind, length of the headers, of a segment's data, ...
_HEADER = 10
_PR_SET_TIMERSLACK = 29


class _Way:
    """From one end to the other: a line that sends one frame after the other, then a time under way."""

    def __init__(self) -> None:
        self.delay = self.jitter = self.bits_per_second = 0.0
        self.free_at = 0.0

    def arrival(self, frame: bytes, now: float, rng: random.Random) -> float | None:
        """None: the queue before the line is full, and the frame is lost."""
        if self.bits_per_second > 0:
            if self.free_at - now > _MAX_QUEUE:
                return None
            self.free_at = max(now, self.free_at) + 8 * num_wire_bytes(frame) / self.bits_per_second
            now = self.free_at
        return now + self.delay + rng.uniform(-self.jitter, self.jitter)


def main(arguments: list[str]) -> None:
    with open("/proc/self/ns/net", "rb") as own:
        here, there = (_open_tap(*arguments[i : i + 2]) for i in (0, 2))
        # Not one of a host's processes: those end, and start anew, without their cable.
        _enter(own.fileno(), "its own")
    # On a busy machine a frame would wait for the processor longer than for its delay.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    os.write(1, b"READY\n")
    _carry({here: there, there: here}, random.Random(0))


def _open_tap(namespace: str, device: str) -> int:
    """A new device, which goes away with this process."""
    with open(f"/run/netns/{namespace}", "rb") as file:
        _enter(file.fileno(), namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _OFFLOADS)
    return tap


def _enter(namespace: int, name: str) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns", name)


def _carry(other_end: dict[int, int], rng: random.Random) -> None:
    """With jitter, frames overtake each other, as they do on a network with several paths."""
    ways = {fd: _Way() for fd in other_end}
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
                for way in ways.values():
                    way.delay, way.jitter, way.bits_per_second = map(float, line.split()[-3:])
                os.write(1, f"{num_frames}\n".encode())
                continue
            for _ in range(_MAX_AT_ONCE):
                frame = _read(fd)
                if not frame:
                    break
                num_frames += 1
                due = ways[fd].arrival(frame, time.monotonic(), rng)
                if due is not None and len(on_the_way) < _MAX_FRAMES:
                    heapq.heappush(on_the_way, (due, num_frames, other_end[fd], frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _write(*heapq.heappop(on_the_way)[2:])


def num_wire_bytes(frame: bytes) -> int:
    """Of the packets that a frame is on a cable: a header for each of them."""
    _, kind, header_len, segment_len = struct.unpack_from("BBHH", frame)
    num = len(frame) - _HEADER
    if kind and segment_len:
        num += max(0, -(-(num - header_len) // segment_len) - 1) * header_len
    return num


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

    def set(self, delay: float, jitter: float = 0.0, bits_per_second: float = 0.0) -> int:
        """Seconds one way, for frames that come from now on; how many came until now."""
        if not 0 <= jitter <= delay:
            raise ValueError(f"jitter {jitter} is not within the delay {delay}")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay} {jitter} {bits_per_second}\n")
        self._process.stdin.flush()
        return int(self._expect(""))

    def close(self) -> None:
        """Idempotent."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # What it was last told may not have gone out, where it has died.
            with suppress(BrokenPipeError):
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
